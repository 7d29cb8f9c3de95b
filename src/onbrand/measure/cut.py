"""A picture cut into its ground, what is connected to the border, and the product, all the rest."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from onbrand.measure.lab import distance, to_lab

LOOSE = 12.0
"""Ground is what the border reaches over pixels this close (dE) to the picture's own ground colour."""
BATCH = 128
"""Pictures cut at a time, so that memory does not grow with the folder."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Pictures `(B, 3, H, W)` and where their ground and product are."""

    pictures: Tensor
    """`(B, 3, H, W)` float32 in [0, 1]."""
    lab: Tensor
    """`(B, 3, H, W)` L*, a*, b*."""
    own: Tensor
    """`(B, 3)` Lab of each picture's own ground: the median of its border."""
    ground: Tensor
    """`(B, H, W)` bool: connected to the border over pixels within LOOSE of `own`."""
    product: Tensor
    """`(B, H, W)` bool: not ground; enclosed ground (the eye of a handle) belongs to it. Specks are left out."""


def cut(pictures: Tensor) -> Cut:
    """Cut pictures `(B, 3, H, W)` in [0, 1] of at least 8 pixels a side; ValueError for others."""
    if pictures.ndim == 4 and min(pictures.shape[2:]) < 8:
        raise ValueError(f"pictures have at least 8 pixels a side: got {tuple(pictures.shape[2:])}; use larger ones")
    lab = to_lab(pictures)
    own = border(lab).median(2).values
    ground = connected(distance(lab, own) <= LOOSE)
    return Cut(pictures.float(), lab, own, ground, without_specks(~ground))


def cuts(pictures: Tensor, batch: int = BATCH) -> Iterator[Cut]:
    """`cut` in batches."""
    return (cut(part) for part in pictures.split(batch))


def border(fields: Tensor) -> Tensor:
    """The outermost pixels of `(B, C, H, W)`, each once, as `(B, C, 2 (H + W) - 4)`: top, bottom, left, right."""
    top, bottom, left, right = sides(fields)
    return torch.cat([top, bottom, left[..., 1:-1], right[..., 1:-1]], -1)


def sides(fields: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outermost row or column at the top, bottom, left and right of `(..., H, W)`."""
    return fields[..., 0, :], fields[..., -1, :], fields[..., :, 0], fields[..., :, -1]


def bands(fields: Tensor, wide: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outermost `wide` rows or columns at the top, bottom, left and right of `(..., H, W)`."""
    return fields[..., :wide, :], fields[..., -wide:, :], fields[..., :wide], fields[..., -wide:]


def connected(mask: Tensor) -> Tensor:
    """The part of a mask `(B, H, W)` that the border reaches over edges of pixels (4-neighbours); the same shape."""
    reached = torch.zeros_like(mask)
    for side, source in zip(sides(reached), sides(mask), strict=True):
        side.copy_(source)
    while True:
        grown = _sweep(_sweep(reached, mask).mT, mask.mT).mT
        if bool((grown == reached).all()):
            return reached
        reached = grown


def without_specks(mask: Tensor) -> Tensor:
    """Pixels of a mask `(B, H, W)` that have at least two more in their 3 x 3 neighbourhood."""
    near = torch.nn.functional.avg_pool2d(mask[:, None].float(), 3, 1, 1, count_include_pad=True)[:, 0] * 9
    return mask & (near > 2.5)


def grown(mask: Tensor, by: int) -> Tensor:
    """A mask `(B, H, W)` grown by `by` pixels in every direction (a square)."""
    return max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def _sweep(reached: Tensor, mask: Tensor) -> Tensor:
    """`reached` carried down and up all columns as far as the mask lasts."""
    rows, free = reached.transpose(0, 1).contiguous(), mask.transpose(0, 1).contiguous()
    for i in range(1, len(rows)):
        rows[i] |= rows[i - 1] & free[i]
    for i in range(len(rows) - 2, -1, -1):
        rows[i] |= rows[i + 1] & free[i]
    return rows.transpose(0, 1)
