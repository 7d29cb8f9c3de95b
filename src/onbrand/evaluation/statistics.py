"""Statistics of images: means with bootstrap intervals, diversity, and the Fréchet distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.errors import OnbrandError

RESAMPLES = 2000
"""Redraws of the images, with replacement. scipy.stats.bootstrap gives the same bounds but for the luck of its redraws
(the tests compare them); ours are kept because the published intervals were drawn with torch's generator."""
LEVEL = 0.95
"""Share of redraws that lie in the interval."""


@dataclass(frozen=True)
class Interval:
    """A mean over images with its percentile bootstrap interval."""

    value: float
    """The mean; nan without an image."""
    low: float
    high: float
    n: int
    """Images in the mean."""


def mean(values: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute a mean and its interval by Efron's percentile method: the middle `level` of the means of redrawn images.

    Args:
        values: `(B,)` numbers or bools; nan are left out.
        level: share of the redraws inside the interval, in (0, 1).
        resamples: redraws.
        seed: fixes the redraws.

    Raises:
        OnbrandError: another shape, or a level outside (0, 1).
    """
    values = _column(values)
    values = values[~values.isnan()]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    low, high = _bounds(_redrawn(values, resamples, seed), level)
    return Interval(float(values.mean()), low, high, len(values))


def difference(a: Tensor, b: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute the mean of a - b and its interval; pairs are redrawn, so that the effect of the seed alone cancels.

    Args:
        a: `(B,)` values of images; pairs with a nan are left out.
        b: `(B,)` values of images with the same seeds.
        level: as in `mean`.
        resamples: as in `mean`.
        seed: as in `mean`.

    Raises:
        OnbrandError: two lengths, another shape, or a level outside (0, 1).
    """
    a, b = _column(a), _column(b)
    if len(a) != len(b):
        raise OnbrandError(
            "value", f"a paired difference needs the same seeds in both rows: got {len(a)} and {len(b)} images"
        )
    return mean(a - b, level=level, resamples=resamples, seed=seed)


def statistic(redraws: Tensor, value: float, n: int, level: float = LEVEL) -> Interval:
    """The interval of any statistic, from its values `(R,)` on redrawn images."""
    return Interval(value, *_bounds(redraws, level), n)


def redraw(n: int, resamples: int, seed: int) -> Tensor:
    """`(resamples, n)` indices of images drawn with replacement, the same for one (n, resamples, seed)."""
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def _redrawn(values: Tensor, resamples: int, seed: int) -> Tensor:
    """Means of redrawn values, `(resamples,)`; in parts, so that a million images fit in memory."""
    generator, n = torch.Generator().manual_seed(seed), len(values)
    part = max(1, min(resamples, 20_000_000 // n))
    sizes = [min(part, resamples - first) for first in range(0, resamples, part)]
    return torch.cat([values[torch.randint(n, (size, n), generator=generator)].mean(1) for size in sizes])


def _bounds(redraws: Tensor, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise OnbrandError("value", f"an interval's level is a share in (0, 1): got {level}; take 0.95")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=redraws.dtype)
    low, high = redraws.quantile(tails).tolist()
    return low, high


def _column(values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise OnbrandError(
            "value", f"one value an image, (B,): got {tuple(values.shape)}; bootstrap one property at a time"
        )
    return values.detach().double().cpu()


@dataclass(frozen=True, eq=False)
class Diversity:
    """Variances of images over the reference's: 1 is as diverse as the brand, 0 is one image again and again."""

    total: float
    """Sum of the variances over the sum of the reference's."""
    components: Tensor
    """`(k,)` ratio in each component; nan if the reference has no variance in it."""


def diversity(coordinates: Tensor, variances: Tensor) -> Diversity:
    """Compute the ratio of the images' variances to the reference's, in total and in each component.

    Variances are about the images' own mean, so that an error of their mean does not count as diversity.

    Args:
        coordinates: `(B, k)`, B > 1: Gaussian.coordinates(x0), pixels, or any features.
        variances: `(k,)` of the reference: the Gaussian's, or `reference_coordinates.var(0)`.

    Raises:
        OnbrandError: fewer than two images, shapes that do not fit, or a reference without variance.
    """
    if coordinates.ndim != 2 or len(coordinates) < 2 or variances.shape != coordinates.shape[1:]:
        raise OnbrandError(
            "value",
            "a variance ratio needs at least two images' coordinates (B, k) and k variances: "
            f"got {tuple(coordinates.shape)} and {tuple(variances.shape)}",
        )
    own, reference = coordinates.double().var(0), variances.double()
    if float(reference.sum()) <= 0:
        raise OnbrandError(
            "value", "a variance ratio needs a reference that varies: got no variance; give it other images"
        )
    ratios = torch.where(reference > 0, own / reference.clamp(min=1e-30), torch.nan)
    return Diversity(float(own.sum() / reference.sum()), ratios)


def redrawn(coordinates: Tensor, variances: Tensor, indices: Tensor) -> Tensor:
    """The total ratio `(R,)` on redrawn images: coordinates `(B, k)`, variances `(k,)`, `redraw`'s indices `(R, B)`."""
    coordinates = coordinates.double()
    squares = coordinates.square().sum(1)
    n = indices.shape[1]
    spread = torch.stack([squares[row].sum() - coordinates[row].sum(0).square().sum() / n for row in indices])
    return spread / (n - 1) / variances.double().sum()


def frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Compute |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of N(m_a, A) and N(m_b, B).

    Roots are taken by eigen-decomposition: A^1/2 B A^1/2 is symmetric, A B is not, and the traces of their roots are
    equal. Source: Dowson & Landau 1982, eq. 16.

    Args:
        mean_a: `(k,)`.
        covariance_a: `(k, k)`.
        mean_b: `(k,)`.
        covariance_b: `(k, k)`.

    Returns:
        The distance, in squared units of the means; float64.

    Raises:
        OnbrandError: shapes that differ.
    """
    k = len(mean_a)
    if mean_a.shape != mean_b.shape or not covariance_a.shape == covariance_b.shape == (k, k):
        shapes = [tuple(part.shape) for part in (mean_a, covariance_a, mean_b, covariance_b)]
        raise OnbrandError("value", f"two Gaussians have means (k,) and covariances (k, k) of one k: got {shapes}")
    a, b = covariance_a.double(), covariance_b.double()
    half = root(a)
    cross = torch.linalg.eigvalsh(half @ b @ half).clamp(min=0).sqrt().sum()
    return float((mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * cross)


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root of `(k, k)` without negative eigenvalues (rounding may give some: they count as 0)."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    result: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return result


def moments(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(k,)` and covariance `(k, k)`, float64, of coordinates `(B, k)`.

    Raises:
        OnbrandError: fewer than two images.
    """
    if coordinates.ndim != 2 or len(coordinates) < 2:
        shape = tuple(coordinates.shape)
        raise OnbrandError("value", f"a covariance needs coordinates (B, k) of at least two images: got {shape}")
    coordinates = coordinates.double()
    centred = coordinates - coordinates.mean(0)
    return coordinates.mean(0), centred.T @ centred / (len(coordinates) - 1)


def distance(coordinates: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of coordinates, `(B, k)` and `(B', k)`.

    With few images it is biased upwards: compare only rows of equally many images. It is a distance in this prior's
    components and not an FID.
    """
    return frechet(*moments(coordinates), *moments(reference))
