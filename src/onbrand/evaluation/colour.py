"""sRGB to CIELAB (D65, 2 degrees), and the distance dE of two colours (CIE 1976)."""

import torch
from torch import Tensor

from onbrand.errors import OnbrandError

XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
"""Linear sRGB to XYZ, rows X, Y, Z (ITU-R BT.709 primaries, D65), as scikit-image has it."""
WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of D65, 2 degrees."""


def to_linear(images: Tensor) -> Tensor:
    """Linear light in [0, 1] of sRGB values in [0, 1], any shape (IEC 61966-2-1)."""
    return torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """SRGB values in [0, 1] of linear light in [0, 1], any shape: the inverse of `to_linear`."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def to_lab(images: Tensor) -> Tensor:
    """Convert sRGB to CIELAB. Source: CIE 15:2004.

    Args:
        images: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(B, 3, H, W)` float32: L* in [0, 100], a*, b*.

    Raises:
        OnbrandError: another shape, or values outside [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise OnbrandError(
            "value", f"images are (B, 3, H, W): got {tuple(images.shape)}; add the batch axis, drop alpha"
        )
    images = images.float()
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        low, high = float(images.min()), float(images.max())
        raise OnbrandError("value", f"images are in [0, 1]: got [{low:.3g}, {high:.3g}]; rescale or clamp them first")
    matrix = torch.tensor(XYZ, device=images.device) / torch.tensor(WHITE, device=images.device)[:, None]
    x, y, z = _cube_root(torch.einsum("ij,bjhw->bihw", matrix, to_linear(images))).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_of(colour: tuple[int, int, int], device: torch.device | str | None = None) -> Tensor:
    """Lab `(3,)` of one RGB colour, 0..255."""
    return to_lab(torch.tensor(colour, device=device).view(1, 3, 1, 1) / 255).flatten()


def distance(lab: Tensor, colours: Tensor) -> Tensor:
    """dE76 `(B, H, W)` of each pixel of lab `(B, 3, H, W)` from a colour `(3,)`, or one an image `(B, 3)`."""
    return (lab - colours.expand(len(lab), 3)[:, :, None, None]).square().sum(1).sqrt()


def _cube_root(t: Tensor) -> Tensor:
    """CIE's f: the cube root, and its tangent below (6/29)^3."""
    low = (6 / 29) ** 3
    return torch.where(t > low, t.clamp(min=low) ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)
