"""The pose: how far a silhouette lies on the mean silhouette of its class."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from onbrand.evaluation.segmentation import Cut, cuts

SIDE = 32
"""Side of a silhouette."""


def silhouette(cut: Cut) -> Tensor:
    """Cover of each of SIDE x SIDE cells of the frame by what is not ground: `(B, SIDE, SIDE)` in [0, 1]."""
    return adaptive_avg_pool2d(cut.whole.float()[:, None], SIDE)[:, 0]


def overlap(silhouettes: Tensor, means: Tensor) -> Tensor:
    """Soft intersection over union of silhouettes and means, `(B, S, S)` or `(S, S)` each: `(B,)` in [0, 1].

    sum(min(s, m)) / sum(max(s, m)); nan where there is no product.
    """
    union = torch.maximum(silhouettes, means).sum((1, 2))
    shared = torch.minimum(silhouettes, means).sum((1, 2)) / union
    return torch.where(silhouettes.sum((1, 2)) > 0, shared, torch.nan)


@torch.no_grad()
def silhouettes_of(pictures: Tensor) -> Tensor:
    """The silhouettes `(B, SIDE, SIDE)` of pictures `(B, 3, H, W)` in [0, 1], on the CPU."""
    return torch.cat([silhouette(part).cpu() for part in cuts(pictures)])
