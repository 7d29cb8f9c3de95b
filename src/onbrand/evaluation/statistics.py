"""Bootstrap over pictures: how far a mean, or the difference of two rows, may be from what it seems."""

from __future__ import annotations

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


@dataclass(frozen=True, eq=False)
class Diversity:
    """Variances of generated pictures over the reference's; 1 is the brand's own variety, 0 one picture again."""

    total: float
    """Sum of the variances over sum of the reference's."""
    components: Tensor
    """`(k,)` ratio in each component; nan where the reference has no variance."""


def diversity(coordinates: Tensor, variances: Tensor) -> Diversity:
    """Variance ratio of coordinates `(B, k)` against the reference's variances `(k,)`: total and per component.

    Coordinates are Gaussian.coordinates(x0), or pixels, or any features; `variances` the Gaussian's own, or
    `reference_coordinates.var(0)`. The spread of the class mean's error does not count: variances are about the
    generated pictures' own mean. ValueError for fewer than two pictures or where the two do not fit.
    """
    if coordinates.ndim != 2 or len(coordinates) < 2 or variances.shape != coordinates.shape[1:]:
        raise ValueError(
            "a variance ratio needs at least two pictures' coordinates (B, k) and k variances: "
            f"got {tuple(coordinates.shape)} and {tuple(variances.shape)}"
        )
    own, reference = coordinates.double().var(0), variances.double()
    if float(reference.sum()) <= 0:
        raise ValueError("a variance ratio needs a reference that varies: got no variance; give it other pictures")
    ratios = torch.where(reference > 0, own / reference.clamp(min=1e-30), torch.nan)
    return Diversity(float(own.sum() / reference.sum()), ratios)


def redrawn(coordinates: Tensor, variances: Tensor, indices: Tensor) -> Tensor:
    """The total ratio on redrawn pictures, `(R,)`: indices `(R, B)` as intervals.redraw gives them."""
    coordinates = coordinates.double()
    squares = coordinates.square().sum(1)
    n = indices.shape[1]
    spread = torch.stack([squares[row].sum() - coordinates[row].sum(0).square().sum() / n for row in indices])
    return spread / (n - 1) / variances.double().sum()


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of N(m_a, A) and N(m_b, B); means `(k,)`, covariances `(k, k)`.

    In squared units of the means; float64. Symmetric roots by eigen-decomposition: A^1/2 B A^1/2 is symmetric where
    A B is not, and the traces of their roots are equal. ValueError where the shapes differ.
    Source: Dowson & Landau 1982, eq. 16.
    """
    k = len(mean_a)
    if mean_a.shape != mean_b.shape or not covariance_a.shape == covariance_b.shape == (k, k):
        shapes = [tuple(part.shape) for part in (mean_a, covariance_a, mean_b, covariance_b)]
        raise ValueError(f"two Gaussians have means (k,) and covariances (k, k) of one k: got {shapes}")
    a, b = covariance_a.double(), covariance_b.double()
    half = root(a)
    cross = torch.linalg.eigvalsh(half @ b @ half).clamp(min=0).sqrt().sum()
    return float((mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * cross)


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root `(k, k)` of a symmetric matrix without negative eigenvalues (tiny ones are taken as 0)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(k,)` and covariance `(k, k)`, float64, of coordinates `(B, k)`; ValueError for fewer than two."""
    if coordinates.ndim != 2 or len(coordinates) < 2:
        shape = tuple(coordinates.shape)
        raise ValueError(f"a covariance needs coordinates (B, k) of at least two pictures: got {shape}")
    coordinates = coordinates.double()
    centred = coordinates - coordinates.mean(0)
    return coordinates.mean(0), centred.T @ centred / (len(coordinates) - 1)


def distance(coordinates: Tensor, reference: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of coordinates, `(B, k)` and `(B', k)`.

    With few pictures it is biased upwards; compare only rows of one number of pictures. It is a distance in *this*
    prior's components and no FID.
    """
    return frechet(*moments(coordinates), *moments(reference))
