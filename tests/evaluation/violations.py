"""Images as a brand would not have them, made from its own; written apart from the code that is to see them."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def on_background(images: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """The same on another, darker background: no pixel is lighter than it."""
    return torch.minimum(images, torch.tensor(colour).view(1, 3, 1, 1) / 255)


def on_gradient(images: Tensor, darkest: int) -> Tensor:
    """The same on a background that falls from white at the left to grey at the right."""
    return torch.minimum(images, torch.linspace(1, darkest / 255, images.shape[3]))


def on_noise(images: Tensor, darkest: int, seed: int = 0) -> Tensor:
    """The same on a busy background: blotches of 4 x 4 pixels."""
    n, _, height, width = images.shape
    draw = torch.rand(n, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.minimum(images, darkest / 255 + (1 - darkest / 255) * interpolate(draw, (height, width)))


def shift(images: Tensor, right: int, down: int) -> Tensor:
    """Moved by whole pixels, filled up with white, cut where they leave the frame."""
    result = torch.ones_like(images)
    height, width = images.shape[2:]
    x, y = slice(max(right, 0), width + min(right, 0)), slice(max(down, 0), height + min(down, 0))
    from_x, from_y = slice(max(-right, 0), width - max(right, 0)), slice(max(-down, 0), height - max(down, 0))
    result[:, :, y, x] = images[:, :, from_y, from_x]
    return result


def zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of the image, enlarged."""
    height, width = images.shape[2:]
    large = interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    top, left = (large.shape[2] - height) // 2, (large.shape[3] - width) // 2
    return large[:, :, top : top + height, left : left + width].clamp(0, 1)


def side_light(images: Tensor, fall: float, product_only: bool = False) -> Tensor:
    """Light falls by `fall` from the left to the right, in linear light, on the whole set or on the product alone."""
    gain = 1 - fall * torch.linspace(0, 1, images.shape[3])
    result = under(images, gain)
    return torch.where((images < 1).any(1, keepdim=True), result, images) if product_only else result


def dimmed(images: Tensor, to: float) -> Tensor:
    """The whole set under `to` of the light."""
    return under(images, torch.tensor(to))


def gamma(images: Tensor, exponent: float) -> Tensor:
    """Another gamma: white stays white."""
    return images**exponent


def under(images: Tensor, light: Tensor) -> Tensor:
    """sRGB values with the linear light multiplied (IEC 61966-2-1)."""
    linear = light * torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
