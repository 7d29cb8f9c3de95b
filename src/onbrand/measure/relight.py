"""Pictures as they would be with the product in another light: what a learner of the brand's light is shown."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from onbrand.measure.lab import to_linear, to_srgb

FALL = (0.3, 0.6)
"""Share of the light lost across the product, least and most."""
GAMMA = (1.3, 1.7)
"""Exponent of sRGB values, or of its inverse."""
CAST = (0.2, 0.4)
"""Share of blue light lost under a warm lamp, of red light under a cool one; green loses 0.4 of that."""


def relight(pictures: Tensor, product: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures `(B, 3, H, W)` in [0, 1] with the product `(B, H, W)` in another light, drawn for each picture.

    Half of them: light that falls off across the product in any direction. A quarter: another gamma. A quarter: a
    warmer or a cooler lamp. The ground stays as it is.
    """
    n = len(pictures)

    def draw(low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=generator)).to(pictures.device).view(-1, 1, 1, 1)

    angle, fall, kind, gamma, cast = draw(0, 6.2832), draw(*FALL), draw(), draw(*GAMMA), draw(*CAST)
    inverse, warm = draw() < 0.5, draw() < 0.5
    across, down = frame(product)
    along = across * angle[:, 0].cos() + down * angle[:, 0].sin()
    low = torch.where(product, along, torch.inf).amin((1, 2), keepdim=True)
    high = torch.where(product, along, -torch.inf).amax((1, 2), keepdim=True)
    lost = fall * ((along - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)[:, None]
    lamp = torch.cat([cast * ~warm, 0.4 * cast, cast * warm], 1)
    light = to_linear(pictures) * torch.where(kind < 0.5, 1 - lost, 1 - lamp)
    curved = pictures ** torch.where(inverse, 1 / gamma, gamma)
    return torch.where(product[:, None], torch.where(kind < 0.75, to_srgb(light), curved), pictures).clamp(0, 1)


def soften(pictures: Tensor) -> Tensor:
    """Half the picture, half its 3 x 3 means: about as soft as a VAE leaves it; `(B, 3, H, W)`."""
    return 0.5 * pictures + 0.5 * avg_pool2d(pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)


def frame(product: Tensor) -> tuple[Tensor, Tensor]:
    """How far each pixel is to the right of and below the middle of the product's box, in its widths and heights:
    -1/2..1/2 inside; `(B, H, W)` each, from a mask `(B, H, W)`."""

    def axis(occupied: Tensor) -> Tensor:
        n = occupied.shape[1]
        place = torch.arange(n, device=occupied.device)
        first = torch.where(occupied, place, n).amin(1, keepdim=True)
        last = torch.where(occupied, place, -1).amax(1, keepdim=True)
        return (place - (first + last) / 2) / (last - first + 1).clamp(min=1)

    across, down = axis(product.any(1))[:, None, :], axis(product.any(2))[:, :, None]
    return across.expand(product.shape), down.expand(product.shape)
