"""Is the garment that was given the garment that is shown: how far a picture is from its condition where that shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import Refused


def region_difference(pictures: Tensor, conditions: Tensor, regions: Tensor) -> Tensor:
    """Mean absolute difference `(B,)`, in 1/255, of pictures from conditions over each region less a rim of one pixel.

    pictures, conditions `(B, 3, H, W)` in [0, 1]; regions `(B, H, W)` bool. An anti-aliased edge belongs to both the
    garment and what is behind it, which the condition does not tell; the frame is no edge. nan where nothing is left.
    Source: the task of the paper's section 4.4; the measure is ours. ValueError for other shapes or ranges.
    """
    if pictures.ndim != 4 or pictures.shape != conditions.shape or regions.shape != pictures[:, 0].shape:
        raise ValueError(
            "a difference by region needs pictures and conditions (B, 3, H, W) and regions (B, H, W) of one size; got "
            f"{tuple(pictures.shape)}, {tuple(conditions.shape)}, {tuple(regions.shape)}. Pad them to one size"
        )
    for name, one in (("pictures", pictures), ("conditions", conditions)):
        if one.numel() and not -1e-3 <= one.min() <= one.max() <= 1 + 1e-3:
            raise ValueError(f"{name} lie in [0, 1]; got {one.min():.3g} to {one.max():.3g}. Scale them")
    inner = inner_of(regions)
    apart = (pictures.float() - conditions.float()).abs().mean(1) * 255
    total = torch.where(inner, apart, 0).sum((1, 2))
    return total / inner.sum((1, 2))


def inner_of(regions: Tensor) -> Tensor:
    """Regions `(B, H, W)` bool less the pixels with one of another kind among their eight neighbours."""
    return max_pool2d((~regions)[:, None].float(), 3, 1, 1)[:, 0] == 0


def region_differences(pictures: Tensor, conditioning: Sequence[Sequence[Path]]) -> Tensor:
    """Mean difference `(B,)`, in 1/255, of each picture from what it was made from, where that shows; nan without.

    pictures `(B, 3, H, W)` in [0, 1]; conditioning: the control pictures of each, none at all where there are none.
    Edges and poses have no transparency, hence no region; of several garments it is the mean. ValueError for a control
    picture that cannot be opened.
    """
    found = [
        torch.stack([*(_difference(file, pixels) for file in files), torch.tensor(torch.nan)]).nanmean()
        for files, pixels in zip(conditioning or [()] * len(pictures), pictures, strict=True)
    ]
    return torch.stack(found)


def _difference(file: Path, pixels: Tensor) -> Tensor:
    size = (pixels.shape[1], pixels.shape[2])
    condition, region = read_conditioning(file, size), open_region(file, size)
    if region is None or isinstance(region, Refused):
        return torch.tensor(torch.nan)
    return region_difference(pixels[None], condition[None], region[None])[0]
