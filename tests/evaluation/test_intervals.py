"""Bootstrap intervals against scipy's."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from onbrand.evaluation import statistics
from worlds import raises

VALUES = torch.rand(300, generator=torch.Generator().manual_seed(3)) ** 3


def scipys(*columns: torch.Tensor, statistic: Any = np.mean, **options: Any) -> tuple[float, float]:
    data = tuple(column.double().numpy() for column in columns)
    interval = bootstrap(data, statistic, n_resamples=20000, method="percentile", random_state=0, **options)
    return interval.confidence_interval


def test_mean_is_scipys() -> None:
    interval = statistics.mean(VALUES, resamples=20000)
    low, high = scipys(VALUES)
    assert interval.value == pytest.approx(float(VALUES.double().mean())) and interval.n == 300
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_paired_difference_is_scipys_and_narrower_than_the_rows_own() -> None:
    other = VALUES + 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(4)) - 0.05
    interval = statistics.difference(VALUES, other, resamples=20000)
    low, high = scipys(VALUES, other, statistic=lambda a, b: np.mean(a) - np.mean(b), paired=True, vectorized=False)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04 * (high - low))
    alone = statistics.mean(VALUES)
    assert interval.high - interval.low < 0.5 * (alone.high - alone.low)


def test_level_moves_the_bounds() -> None:
    wide, narrow = statistics.mean(VALUES, level=0.99), statistics.mean(VALUES, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_shares_of_bools_stay_in_0_to_1() -> None:
    interval = statistics.mean(torch.tensor([True] * 99 + [False]))
    assert interval.value == pytest.approx(0.99) and 0.95 < interval.low < 0.99 < interval.high <= 1


def test_nan_are_left_out_and_nothing_is_nan() -> None:
    interval = statistics.mean(torch.cat([VALUES, torch.full((50,), torch.nan)]))
    assert interval == statistics.mean(VALUES)
    empty = statistics.mean(torch.full((2,), torch.nan))
    assert math.isnan(empty.value) and empty.n == 0


def test_the_same_seed_gives_the_same_interval_and_parts_do_not_matter() -> None:
    assert statistics.mean(VALUES, seed=5) == statistics.mean(VALUES, seed=5) != statistics.mean(VALUES, seed=6)
    big = torch.rand(15_000, generator=torch.Generator().manual_seed(0))  # resampled in more than one part
    width = statistics.mean(big)
    assert width.high - width.low == pytest.approx(2 * 1.96 * float(big.std()) / 15_000**0.5, rel=0.06)


def test_wrong_input_is_refused() -> None:
    with raises("value", "seeds", "300 and 5"):
        statistics.difference(VALUES, VALUES[:5])
    with raises("value", "(B,)", "(1, 300)"):
        statistics.mean(VALUES[None])
    with raises("value", "level", "(0, 1)", 95):
        statistics.mean(VALUES, level=95)
