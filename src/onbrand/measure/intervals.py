"""Bootstrap over pictures: how far a mean, or the difference of two rows, may be from what it seems."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
"""Redraws of the pictures, with replacement."""
LEVEL = 0.95
"""Share of redraws that lie in the interval."""


@dataclass(frozen=True)
class Interval:
    """A mean over pictures with its percentile bootstrap interval."""

    value: float
    """The mean; nan where there is no picture."""
    low: float
    high: float
    n: int
    """Pictures it is the mean of."""


def mean(values: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `(B,)` numbers or bools with its interval; nan are left out. ValueError for another shape.

    Efron's percentile method: the interval holds the middle `level` of the means of redrawn pictures.
    """
    values = _column(values)
    values = values[~values.isnan()]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    low, high = _bounds(_redrawn(values, resamples, seed), level)
    return Interval(float(values.mean()), low, high, len(values))


def difference(a: Tensor, b: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of a - b over pictures `(B,)` made from the same seeds: the pairs are redrawn, so that what the seed alone
    does falls out. Pairs with a nan are left out. ValueError where the two are not of one length."""
    a, b = _column(a), _column(b)
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same seeds in both rows: got {len(a)} and {len(b)} pictures")
    return mean(a - b, level=level, resamples=resamples, seed=seed)


def statistic(redraws: Tensor, value: float, n: int, level: float = LEVEL) -> Interval:
    """The interval of any statistic from its values on redrawn pictures, `(R,)`."""
    return Interval(value, *_bounds(redraws, level), n)


def redraw(n: int, resamples: int, seed: int) -> Tensor:
    """`(resamples, n)` indices of pictures drawn with replacement, the same for one (n, resamples, seed)."""
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def _redrawn(values: Tensor, resamples: int, seed: int) -> Tensor:
    """Means of redrawn values, `(resamples,)`; in parts, so that a million pictures fit in memory."""
    generator, n = torch.Generator().manual_seed(seed), len(values)
    part = max(1, min(resamples, 20_000_000 // n))
    sizes = [min(part, resamples - done) for done in range(0, resamples, part)]
    return torch.cat([values[torch.randint(n, (size, n), generator=generator)].mean(1) for size in sizes])


def _bounds(redraws: Tensor, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"an interval's level is a share in (0, 1): got {level}; take 0.95")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=redraws.dtype)
    low, high = redraws.quantile(tails).tolist()
    return low, high


def _column(values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise ValueError(f"one value a picture, (B,): got {tuple(values.shape)}; bootstrap one property at a time")
    return values.detach().double().cpu()
