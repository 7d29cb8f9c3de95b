"""A control image -> what the network is given: a garment cut out, edges, a pose; and the region that it covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onbrand.data.images import RGB, open_image, pad, read_bytes, to_tensor
from onbrand.errors import OnbrandError, UnreadableImage

CONDITION_BACKGROUND: RGB = (0, 255, 0)
"""What a control image's transparency is laid over: a film's green, far from any dye of the catalogue.

Measured in docs/research/catalogue.md: white lies near white garments, and mid-grey nearer still to grey ones.
"""


def read_conditioning(file: str | Path, size: tuple[int, int], flip: bool = False) -> Tensor:
    """A control image `(3, H, W)` float32 in [0, 1], as diffusers' ControlNet takes it.

    Transparency is laid over CONDITION_BACKGROUND; without any (edges, poses) that never shows. Padded to `size` =
    (H, W) as images are (`images.pad`), never cropped; flip: left and right are swapped, for an image that is.
    OnbrandError for one that cannot be opened.
    """
    try:
        image = open_image(file, background=CONDITION_BACKGROUND)
    except UnreadableImage as error:
        raise OnbrandError(
            "image", f"every control image must open; {error}: mend it, or leave out the image it belongs to"
        ) from error
    pixels = (to_tensor(pad(image, size)) + 1) / 2
    return pixels.flip(-1) if flip else pixels


def open_region(file: str | Path, size: tuple[int, int]) -> Tensor | None:
    """What a control image shows, `(H, W)` bool: where nothing of the background is seen; None without transparency.

    Where it is the same over black and over white; padded as `read_conditioning` does, the padding outside.
    UnreadableImage for one that cannot be opened.
    """
    content = read_bytes(file)
    backgrounds: tuple[RGB, RGB] = ((0, 0, 0), (255, 255, 255))
    black, white = (open_image(file, content, background) for background in backgrounds)
    if np.array_equal(np.asarray(black), np.asarray(white)):
        return None
    on_black, on_white = to_tensor(pad(black, size, backgrounds[0])), to_tensor(pad(white, size, backgrounds[1]))
    return torch.isclose(on_black, on_white, atol=1 / 255).all(0)
