"""A control picture -> what the network is given: a garment cut out, edges, a pose; and the region that it covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onbrand.data.images import RGB, Refused, open_picture, pad, read_bytes, to_tensor

CONDITION_GROUND: RGB = (0, 255, 0)
"""What a control picture's transparency is laid over: a film's green, far from any dye of the catalogue.

Measured in docs/garments.md: white lies near white garments, and mid-grey nearer still to grey ones.
"""


def open_conditioning(file: str | Path, size: tuple[int, int], flip: bool = False) -> Tensor | Refused:
    """A control picture `(3, H, W)` float32 in [0, 1], as diffusers' ControlNet takes it, or why it cannot be had.

    Transparency is laid over CONDITION_GROUND; without any (edges, poses) the ground never shows. Padded to `size` =
    (H, W) as pictures are (`images.pad`), never cropped; flip: left and right are swapped, for a picture that is.
    """
    picture = open_picture(file, ground=CONDITION_GROUND)
    if isinstance(picture, Refused):
        return picture
    pixels = (to_tensor(pad(picture, size)) + 1) / 2
    return pixels.flip(-1) if flip else pixels


def read_conditioning(file: str | Path, size: tuple[int, int], flip: bool = False) -> Tensor:
    """`open_conditioning`; ValueError for a picture that cannot be had."""
    pixels = open_conditioning(file, size, flip)
    if isinstance(pixels, Refused):
        raise ValueError(f"every control picture must open; {pixels}: mend it, or leave out the picture it belongs to")
    return pixels


def open_region(file: str | Path, size: tuple[int, int]) -> Tensor | Refused | None:
    """What a control picture shows, `(H, W)` bool: where nothing of the ground is seen; None without transparency.

    Where it is the same over black and over white; padded as `open_conditioning` does, the padding outside.
    """
    content = read_bytes(file)
    if isinstance(content, Refused):
        return content
    grounds: tuple[RGB, RGB] = ((0, 0, 0), (255, 255, 255))
    black, white = (open_picture(file, content, ground) for ground in grounds)
    if isinstance(black, Refused):
        return black
    if isinstance(white, Refused):
        return white
    if np.array_equal(np.asarray(black), np.asarray(white)):
        return None
    on_black, on_white = to_tensor(pad(black, size, grounds[0])), to_tensor(pad(white, size, grounds[1]))
    return torch.isclose(on_black, on_white, atol=1 / 255).all(0)
