"""The pictures that requests bring: what an image start starts from, what ControlNets read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import Refused, open_picture, pad, to_tensor
from onbrand.generate.config import GenerateConfig
from onbrand.generate.requests import Request
from onbrand.models.control import nets_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


def images_of(requests: Sequence[Request], prior: Prior | None) -> Tensor:
    """(B, 3, H, W) in [-1, 1]: the requests' pictures, padded to the prior's size (else the first one's).

    ValueError for one that cannot be opened."""
    opened = []
    ground = (255, 255, 255) if prior is None else prior.provenance.ground
    for request in requests:
        picture = open_picture(str(request.image), ground=ground)
        if isinstance(picture, Refused):
            raise ValueError(f"an image start needs pictures: {picture}")
        opened.append(picture)
    size = (opened[0].height, opened[0].width) if prior is None else prior.provenance.resolution
    return torch.stack([to_tensor(pad(picture, size, ground)) for picture in opened])


def conditions_of(
    pipe: StableDiffusionPipeline, requests: Sequence[Request], config: GenerateConfig, size: tuple[int, int]
) -> dict[str, Any]:
    """What a pipeline with ControlNets is called with beside: a batch of control pictures (B, 3, H, W) in [0, 1] and a
    scale a ControlNet. size: (H, W) of the pictures to make; nothing for a pipeline without.

    ValueError for a picture that cannot be opened."""
    nets = len(nets_of(pipe))
    if not nets:
        return {}
    opened = [torch.stack([read_conditioning(one.conditioning[net], size) for one in requests]) for net in range(nets)]
    given = config.controlnet_scale
    scales, single = list(given) if isinstance(given, tuple | list) else [given] * nets, nets == 1
    return {"image": opened[0] if single else opened, "controlnet_conditioning_scale": scales[0] if single else scales}


def overlaid(pictures: Tensor, requests: Sequence[Request]) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with the control pictures' own pixels where these show something opaque; those
    without transparency (edges, poses) are not laid over. ValueError for one that cannot be opened."""
    pictures, size = pictures.clone(), (pictures.shape[2], pictures.shape[3])
    for picture, request in zip(pictures, requests, strict=True):
        for file in request.conditioning:
            shown, region = read_conditioning(file, size), open_region(file, size)
            assert not isinstance(region, Refused)
            if region is not None:
                picture[:, region] = (2 * shown - 1).to(picture)[:, region]
    return pictures
