"""An image cut in two: the background, which is connected to the border, and the product, which stands out from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from onbrand.errors import OnbrandError
from onbrand.evaluation.colour import distance, to_lab

TIGHT, LOOSE = 4.0, 12.0
"""Distances (dE) from the image's own background colour. The product is what the border does not reach over pixels
within LOOSE. Pale clothes are connected to the product, and the border does not reach them over pixels within TIGHT."""
EVEN = 0.95
"""Share of the border's pixels that its unevenness is measured on: a product may touch it."""
IN_PLANE = [[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3]
"""Neighbours of a pixel in a batch of masks: the four of its own image."""
BATCH = 128
"""Images cut at a time, so that memory does not grow with the folder."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Images, and where their background and product are."""

    images: Tensor
    """`(B, 3, H, W)` float32 in [0, 1]."""
    lab: Tensor
    """`(B, 3, H, W)` L*, a*, b*."""
    own: Tensor
    """`(B, 3)` Lab of each image's own background: the median of its border."""
    background: Tensor
    """`(B, H, W)` bool: neither the product nor pale clothes next to it."""
    product: Tensor
    """`(B, H, W)` bool: what the border does not reach over pixels within LOOSE of `own`. Background inside it (the eye
    of a handle) belongs to it; specks, smears of the background and the inside of white clothes do not."""

    @property
    def whole(self) -> Tensor:
        """`(B, H, W)` bool: the product and pale clothes next to it, less specks."""
        return without_specks(~self.background)


def cut(images: Tensor) -> Cut:
    """Cut images into background and product.

    Args:
        images: `(B, 3, H, W)` in [0, 1], H and W at least 8.

    Raises:
        OnbrandError: smaller images, or another shape or range.
    """
    if images.ndim == 4 and min(images.shape[2:]) < 8:
        raise OnbrandError(
            "value", f"images have at least 8 pixels a side: got {tuple(images.shape[2:])}; use larger ones"
        )
    lab = to_lab(images)
    edge = border(lab)
    own = edge.median(2).values
    far = distance(lab, own)
    uneven = distance(edge[..., None], own)[..., 0].quantile(EVEN, 1)
    tight = (2 * uneven).clamp(TIGHT, LOOSE).view(-1, 1, 1)
    product = ~connected(far <= LOOSE)
    whole = connected(~connected(far <= tight), product)
    return Cut(images.float(), lab, own, ~whole, without_specks(product))


def cuts(images: Tensor, batch: int = BATCH) -> Iterator[Cut]:
    """`cut` in batches."""
    return (cut(part) for part in torch.split(images, batch))


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
    """The part of a mask that is connected to the seeds over edges of its pixels (4-neighbours).

    Args:
        mask: `(B, H, W)` bool.
        seeds: `(B, H, W)` bool; those outside the mask count for nothing. The default is the border.

    Returns:
        `(B, H, W)` bool, on the mask's device.
    """
    if seeds is None:
        seeds = torch.zeros_like(mask)
        for side in sides(seeds):
            side.fill_(True)
    # one call for the batch: parts of two images never touch, and 0 labels what is outside the mask
    labels, count = ndimage.label(mask.cpu().numpy(), IN_PLANE)
    reached = np.zeros(count + 1, bool)
    reached[labels[(seeds & mask).cpu().numpy()]] = True
    return torch.from_numpy(reached[labels]).to(mask.device)


def without_specks(mask: Tensor) -> Tensor:
    """Pixels of a mask `(B, H, W)` that have at least two more in their 3 x 3 neighbourhood."""
    near = avg_pool2d(mask[:, None].float(), 3, 1, 1, count_include_pad=True)[:, 0] * 9
    return mask & (near > 2.5)


def grown(mask: Tensor, by: int) -> Tensor:
    """A mask `(B, H, W)` grown by `by` pixels in every direction (a square)."""
    return max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def pasted(images: Tensor) -> Tensor:
    """Replace the background by white, with an edge one pixel soft.

    The background is `cut`'s: as good a matte as thresholds give, for a background of any colour.

    Args:
        images: `(B, 3, H, W)` in [0, 1], H and W at least 8.

    Returns:
        `(B, 3, H, W)` in [0, 1]; the background is exactly 1.

    Raises:
        OnbrandError: smaller images, or another shape or range.
    """
    parts = []
    for cut in cuts(images):
        product = grown(cut.whole, 1)[:, None].float()
        alpha = avg_pool2d(product, 3, 1, 1, count_include_pad=False) * product
        parts.append(cut.images * alpha + (1 - alpha))
    return torch.cat(parts)
