"""A picture cut into its ground, what is connected to the border, and the product, what stands out from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from onbrand.evaluation.colour import distance, to_lab

TIGHT, LOOSE = 4.0, 12.0
"""Distances (dE) from the picture's own ground colour. What the border does not reach over pixels within LOOSE of it is
the product, and with it what hangs on to that and the border does not reach over pixels within TIGHT: white clothes."""
EVEN = 0.95
"""Of the border's pixels, how many count when its unevenness is told: a product may touch it."""
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
    """`(B, H, W)` bool: neither the product nor what is pale and hangs on to it."""
    product: Tensor
    """`(B, H, W)` bool: what the border does not reach over pixels within LOOSE of `own`; enclosed ground (the eye of
    a handle) belongs to it, specks do not. A smear of the ground is none, nor is the inside of white clothes."""

    @property
    def whole(self) -> Tensor:
        """`(B, H, W)` bool: the product and what is pale and hangs on to it, less specks."""
        return without_specks(~self.ground)


def cut(pictures: Tensor) -> Cut:
    """Cut pictures `(B, 3, H, W)` in [0, 1] of at least 8 pixels a side; ValueError for others."""
    if pictures.ndim == 4 and min(pictures.shape[2:]) < 8:
        raise ValueError(f"pictures have at least 8 pixels a side: got {tuple(pictures.shape[2:])}; use larger ones")
    lab = to_lab(pictures)
    edge = border(lab)
    own = edge.median(2).values
    far = distance(lab, own)
    uneven = distance(edge[..., None], own)[..., 0].quantile(EVEN, 1)
    tight = (2 * uneven).clamp(TIGHT, LOOSE).view(-1, 1, 1)
    product = ~connected(far <= LOOSE)
    whole = connected(~connected(far <= tight), product)
    return Cut(pictures.float(), lab, own, ~whole, without_specks(product))


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


def connected(mask: Tensor, seeds: Tensor | None = None) -> Tensor:
    """The part of a mask `(B, H, W)` that is reached from the seeds in it over edges of pixels (4-neighbours); the
    same shape. seeds `(B, H, W)`: left out, the border."""
    reached = torch.zeros_like(mask)
    if seeds is None:
        for side, source in zip(sides(reached), sides(mask), strict=True):
            side.copy_(source)
    else:
        reached |= mask & seeds
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


def pasted(pictures: Tensor) -> Tensor:
    """Pictures `(B, 3, H, W)` in [0, 1] with their ground at exactly 1, the edge of the product a pixel soft.

    The ground is `cut`'s: as good a matte as thresholds give, whatever the ground was. ValueError for pictures
    under 8 pixels a side.
    """
    made = []
    for cut in cuts(pictures):
        product = grown(cut.whole, 1)[:, None].float()
        alpha = avg_pool2d(product, 3, 1, 1, count_include_pad=False) * product
        made.append(cut.pictures * alpha + (1 - alpha))
    return torch.cat(made)
