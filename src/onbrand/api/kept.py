"""The garment kept: pictures against the garments, cut out, that they were made from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from onbrand.api.materials import Pictures
from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import Refused
from onbrand.measure.region import region_difference


def region_differences(made: Pictures) -> Tensor:
    """Mean difference `(B,)`, in 1/255, of each picture from what it was made from, where that shows; nan without.

    Edges and poses have no transparency, hence no region; of several garments it is the mean. ValueError for a control
    picture that cannot be opened.
    """
    found = [
        torch.stack([*(_difference(file, pixels) for file in files), torch.tensor(torch.nan)]).nanmean()
        for files, pixels in zip(made.conditioning or [()] * len(made.pixels), made.pixels, strict=True)
    ]
    return torch.stack(found)


def _difference(file: Path, pixels: Tensor) -> Tensor:
    size = (pixels.shape[1], pixels.shape[2])
    condition, region = read_conditioning(file, size), open_region(file, size)
    if region is None or isinstance(region, Refused):
        return torch.tensor(torch.nan)
    return region_difference(pixels[None], condition[None], region[None])[0]
