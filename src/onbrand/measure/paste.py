"""What studios do afterwards: the ground cut away by threshold, the product pasted on white."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from onbrand.measure.cut import cuts, grown


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
