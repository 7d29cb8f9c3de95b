"""Variance ratio: how much of the brand's variety generated pictures have, in the prior's components."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
