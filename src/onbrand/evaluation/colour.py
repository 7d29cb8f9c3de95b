"""sRGB to CIELAB (D65, 2 degrees), and the distance dE of two colours (CIE 1976)."""

import torch
from torch import Tensor

XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
"""Linear sRGB to XYZ, rows X, Y, Z (ITU-R BT.709 primaries, D65), as scikit-image has it."""
WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of D65, 2 degrees."""


def to_linear(pictures: Tensor) -> Tensor:
    """Linear light in [0, 1] of sRGB values in [0, 1], any shape (IEC 61966-2-1)."""
    return torch.where(pictures <= 0.04045, pictures / 12.92, ((pictures.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """sRGB values in [0, 1] of linear light in [0, 1], any shape: the inverse of `to_linear`."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def to_lab(pictures: Tensor) -> Tensor:
    """L* in [0, 100], a*, b* of pictures `(B, 3, H, W)` in [0, 1]; the same shape. Source: CIE 15:2004.

    ValueError for another shape or values beyond [0, 1].
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"pictures are (B, 3, H, W): got {tuple(pictures.shape)}; add the batch axis, drop alpha")
    pictures = pictures.float()
    if pictures.numel() and not (float(pictures.min()) >= 0 and float(pictures.max()) <= 1):
        low, high = float(pictures.min()), float(pictures.max())
        raise ValueError(f"pictures are in [0, 1]: got [{low:.3g}, {high:.3g}]; rescale or clamp them first")
    matrix = torch.tensor(XYZ, device=pictures.device) / torch.tensor(WHITE, device=pictures.device)[:, None]
    x, y, z = _cube_root(torch.einsum("ij,bjhw->bihw", matrix, to_linear(pictures))).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_of(colour: tuple[int, int, int], device: torch.device | str | None = None) -> Tensor:
    """Lab `(3,)` of one RGB colour, 0..255."""
    return to_lab(torch.tensor(colour, device=device).view(1, 3, 1, 1) / 255).flatten()


def distance(lab: Tensor, colours: Tensor) -> Tensor:
    """dE76 `(B, H, W)` of each pixel of lab `(B, 3, H, W)` from a colour `(3,)`, or one a picture `(B, 3)`."""
    return (lab - colours.expand(len(lab), 3)[:, :, None, None]).square().sum(1).sqrt()


def _cube_root(t: Tensor) -> Tensor:
    """CIE's f: the cube root, and its tangent below (6/29)^3."""
    low = (6 / 29) ** 3
    return torch.where(t > low, t.clamp(min=low) ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)
