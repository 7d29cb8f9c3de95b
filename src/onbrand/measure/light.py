"""The light: how bright the product is, how much it varies in fine and in large, and how evenly the set is lit."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from onbrand.measure.cut import LOOSE, Cut, sides
from onbrand.measure.lab import distance

LOW = 8
"""Side of the low-pass picture."""


def light_of(cut: Cut) -> dict[str, Tensor]:
    """Of L*, `(B,)` each; nan for the product's numbers where there is none.

    light_mean, light_spread: mean and standard deviation over the product · light_low: spread of its low-pass picture
    (means over 8 x 8 cells, weighted by the product in them) · light_sides: the darkest of the frame's four sides, each
    the median of its pixels: a set that is lit from one side, or too little, is dark on one.
    """
    product, lightness = solid(cut).float(), cut.lab[:, 0]
    many = product.sum((1, 2))
    mean = (lightness * product).sum((1, 2)) / many
    spread = ((lightness - mean[:, None, None]).square() * product).sum((1, 2)) / many
    weight = adaptive_avg_pool2d(product, LOW)
    low = adaptive_avg_pool2d(product * lightness, LOW) / weight.clamp(min=1e-6)
    around = ((low - mean[:, None, None]).square() * weight).sum((1, 2)) / weight.sum((1, 2))
    frame = torch.stack([side.median(-1).values for side in sides(lightness)], 1)
    return {
        "light_mean": mean,
        "light_spread": spread.sqrt(),
        "light_low": around.sqrt(),
        "light_sides": frame.amin(1),
    }


def solid(cut: Cut) -> Tensor:
    """The product without the ground that it encloses, `(B, H, W)`."""
    return cut.product & (distance(cut.lab, cut.own) > LOOSE)
