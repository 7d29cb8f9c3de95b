"""The pose: how far a silhouette overlaps the mean silhouette of its class."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from onbrand.evaluation.segmentation import BATCH, Cut, cut
from onbrand.ranks import each

SIDE = 32
"""Cells along a side of a silhouette."""


def silhouette(cut: Cut) -> Tensor:
    """Share of each of SIDE x SIDE cells of the frame that is not background: `(B, SIDE, SIDE)` in [0, 1]."""
    return adaptive_avg_pool2d(cut.whole.float()[:, None], SIDE)[:, 0]


def overlap(silhouettes: Tensor, means: Tensor) -> Tensor:
    """Soft intersection over union: sum(min(s, m)) / sum(max(s, m)).

    Args:
        silhouettes: `(B, S, S)` in [0, 1].
        means: `(B, S, S)` or `(S, S)` in [0, 1].

    Returns:
        `(B,)` in [0, 1]; nan without a product.
    """
    union = torch.maximum(silhouettes, means).sum((1, 2))
    ratio = torch.minimum(silhouettes, means).sum((1, 2)) / union
    return torch.where(silhouettes.sum((1, 2)) > 0, ratio, torch.nan)


@torch.no_grad()
def silhouettes_of(images: Tensor) -> Tensor:
    """The silhouettes `(B, SIDE, SIDE)` of images `(B, 3, H, W)` in [0, 1], on the CPU."""
    return torch.cat(list(each(lambda part: silhouette(cut(part)).cpu(), torch.split(images, BATCH))))
