"""A control picture -> what the network is given: a garment cut out, edges, a pose; and the region that it covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import RGB, Refused, open_picture, pad, read_bytes, to_tensor

CONDITION_GROUND: RGB = (0, 255, 0)
"""What a control picture's transparency is laid over: a film's green, far from any dye of the catalogue.

White swallows white garments, and mid-grey one in eight of the catalogue's (docs/garments.md).
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


def open_region(file: str | Path, size: tuple[int, int]) -> Tensor | Refused | None:
    """What a control picture shows, `(H, W)` bool: where nothing of the ground is seen; None without transparency.

    Where it is the same over black and over white; padded as `open_conditioning` does, the padding outside.
    """
    content = read_bytes(file)
    if isinstance(content, Refused):
        return content
    grounds: tuple[RGB, RGB] = ((0, 0, 0), (255, 255, 255))
    seen: list[Image.Image] = []
    for ground in grounds:
        picture = open_picture(file, content, ground)
        if isinstance(picture, Refused):
            return picture
        seen.append(picture)
    if np.array_equal(*(np.asarray(picture) for picture in seen)):
        return None
    black, white = (to_tensor(pad(picture, size, ground)) for picture, ground in zip(seen, grounds, strict=True))
    return torch.isclose(black, white, atol=1 / 255).all(0)
