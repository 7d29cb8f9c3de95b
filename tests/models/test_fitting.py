"""The parts of a fit that decide what a class can be started from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from onbrand.comparison.baselines import few_of
from onbrand.core import ConditionalFitter, Gaussian
from onbrand.models.fitting import FOLDS, numbers_of, starts_of
from worlds import raises


@pytest.mark.parametrize(("begin", "distance"), [(0, 1), (3, 5), (0, 10), (2, 7), (1, 60)])
def test_a_class_at_regular_distances_fills_every_fold(begin: int, distance: int) -> None:
    """Five classes in turn put each into one fold, and a fit has nothing to check itself on."""
    indices = list(range(begin, begin + 30 * distance, distance))
    numbers = numbers_of(indices)
    assert {number % FOLDS for number in numbers.values()} == set(range(FOLDS))
    gaussian = Gaussian(torch.zeros(1, 2, 2), torch.eye(4)[:2], torch.ones(2), 4.0, 30)
    fitter = ConditionalFitter(gaussian, FOLDS)
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    fitter.update(rows, torch.randn(30, 1, 2, 2), [numbers[index] for index in indices])
    assert fitter.finish().r2.shape == (2,)


def test_where_every_fold_has_photos_the_photos_own_numbers_stay() -> None:
    assert numbers_of([0, 6, 12, 18, 24, 7]) == {index: index for index in (0, 6, 12, 18, 24, 7)}


def test_what_a_class_can_be_started_from() -> None:
    one = Gaussian(torch.zeros(1, 2, 2), torch.zeros(0, 4), torch.zeros(0), 0.0, 1)
    assert starts_of(one, False) == ["mean without a look ahead"]
    several = Gaussian(torch.zeros(1, 2, 2), torch.eye(4)[:2], torch.ones(2), 4.0, 5)
    assert starts_of(several, False) == ["pca", "mean with a look ahead"]


def test_few_photos_are_as_many_of_each_class_spread_over_the_folder() -> None:
    records = [SimpleNamespace(class_name="ab"[i % 2], index=i) for i in range(40)]
    selection = few_of(records, 5)  # type: ignore[arg-type]
    assert [one.index for one in selection] == [0, 8, 16, 24, 32, 1, 9, 17, 25, 33]
    with raises("comparison", "30 photos", "a has 20"):
        few_of(records, 30)  # type: ignore[arg-type]
