"""Does the image show the garment of its control image: how far the two are apart over the garment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.errors import OnbrandError


def region_difference(images: Tensor, conditions: Tensor, regions: Tensor) -> Tensor:
    """Measure the mean absolute difference over each region, less a rim of one pixel.

    An anti-aliased edge mixes the garment with what is behind it, which the control image does not show; the frame is
    no edge. Source: the task is the paper's section 4.4; the measure is ours.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        conditions: `(B, 3, H, W)` in [0, 1], the control images.
        regions: `(B, H, W)` bool, where each garment is.

    Returns:
        `(B,)` in 1/255; nan if a region has nothing inside its rim.

    Raises:
        OnbrandError: other shapes or ranges.
    """
    if images.ndim != 4 or images.shape != conditions.shape or regions.shape != images[:, 0].shape:
        raise OnbrandError(
            "value",
            "a difference by region needs images and conditions (B, 3, H, W) and regions (B, H, W) of one size; got "
            f"{tuple(images.shape)}, {tuple(conditions.shape)}, {tuple(regions.shape)}. Pad them to one size",
        )
    for name, one in (("images", images), ("conditions", conditions)):
        if one.numel() and not -1e-3 <= one.min() <= one.max() <= 1 + 1e-3:
            raise OnbrandError("value", f"{name} lie in [0, 1]; got {one.min():.3g} to {one.max():.3g}. Scale them")
    inner = inner_of(regions)
    distances = (images.float() - conditions.float()).abs().mean(1) * 255
    total = torch.where(inner, distances, 0).sum((1, 2))
    return total / inner.sum((1, 2))


def inner_of(regions: Tensor) -> Tensor:
    """Regions `(B, H, W)` bool less the pixels with a neighbour outside, among all eight."""
    return max_pool2d((~regions)[:, None].float(), 3, 1, 1)[:, 0] == 0


def region_differences(images: Tensor, conditioning: Sequence[Sequence[Path]]) -> Tensor:
    """Measure how far each image is from its control images.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        conditioning: the control images of each image; empty if no image has any.

    Returns:
        `(B,)` in 1/255, the mean over an image's garments; nan without one. Edges and poses have no transparency and
        hence no region.

    Raises:
        OnbrandError: a control image that does not open.
    """
    differences = [
        torch.stack([*(_difference(file, pixels) for file in files), torch.tensor(torch.nan)]).nanmean()
        for files, pixels in zip(conditioning or [()] * len(images), images, strict=True)
    ]
    return torch.stack(differences)


def _difference(file: Path, pixels: Tensor) -> Tensor:
    size = (pixels.shape[1], pixels.shape[2])
    condition, region = read_conditioning(file, size), open_region(file, size)
    if region is None:
        return torch.tensor(torch.nan)
    return region_difference(pixels[None], condition[None], region[None])[0]
