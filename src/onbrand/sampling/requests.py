"""What is asked for: a prompt, its class and its seed, from a file of JSON lines or from one prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import open_image, pad, to_tensor
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.models.controlnet import nets_of
from onbrand.options.generate import SamplingSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


@dataclass(frozen=True)
class Request:
    """One image that is asked for."""

    prompt: str
    """The caption."""
    seed: int
    """>= 0; the same noise in any batch."""
    class_name: str | None = None
    """Class of image; None: the prompt's prefix says it."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    image: str | None = None
    """File of the image that an "image" start starts from."""
    attributes: Mapping[str, str] | None = None
    """What is to be seen, attribute -> label, for a reader to look for; None: what the prompt's words say."""
    conditioning: tuple[str, ...] = ()
    """Files of the control images, one for each ControlNet."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise OnbrandError("request", f"a prompt is a text; got {self.prompt!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise OnbrandError("request", f"a seed is a whole number from 0 on; got {self.seed!r}")
        attributes = {} if self.attributes is None else self.attributes
        if not isinstance(attributes, Mapping) or not all(isinstance(value, str) for value in attributes.values()):
            raise OnbrandError("request", f"attributes are an object of texts, as colour: red; got {self.attributes!r}")
        if not all(isinstance(file, str) for file in self.conditioning):
            raise OnbrandError(
                "request", f"conditioning is the name of a file, or a list of them; got {self.conditioning!r}"
            )


def read_requests(
    file: str | Path | None = None, *, prompt: str | None = None, count: int = 1, seed: int = 0
) -> list[Request]:
    """Requests from `file`, or `count` times `prompt` with the seeds seed, seed + 1, ...

    file: a .txt with one prompt a line, or one JSON object a line:
    prompt (or text), and optionally class, seed (else seed + its place in the file),
    negative_prompt, attributes, image (or file_name) and conditioning (or conditioning_file_name: one file or a list),
    relative to the file; other keys are not read, so that a photo folder's metadata.jsonl serves. What cannot be read
    is an OnbrandError that names the line.
    """
    if (file is None) == (prompt is None):
        raise OnbrandError(
            "request", f"give either a file of requests or one prompt; got {'both' if file is not None else 'neither'}"
        )
    if prompt is not None:
        if count < 1:
            raise OnbrandError("request", f"the number of images must be at least 1; got {count}")
        return [Request(prompt, seed + index) for index in range(count)]
    if count != 1:
        raise OnbrandError(
            "request", f"count is for one prompt; got {count} and a file of requests: write each line {count} times"
        )
    path = Path(str(file))
    if not path.is_file():
        raise OnbrandError("request", f"no file of requests at {path.absolute()}")
    requests: list[Request] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = {"prompt": line.strip()} if path.suffix == ".txt" else json.loads(line)
            requests.append(_read_line(row, seed + len(requests), path.parent))
        except json.JSONDecodeError as error:
            raise OnbrandError(
                "request",
                f'{path} line {number}: a request is a line of JSON, as {{"prompt": "..."}}, or of text in a .txt; '
                f"got {line[:60]!r} ({error.msg})",
            ) from error
        except ValueError as error:
            raise OnbrandError("request", f"{path} line {number}: {error}") from error
    if not requests:
        raise OnbrandError("request", f"no requests in {path.absolute()}")
    return requests


def _read_line(row: Any, seed: int, folder: Path) -> Request:
    if not isinstance(row, dict):
        raise OnbrandError("request", f"a request is a JSON object with a prompt; got {row!r}")
    prompt = row.get("prompt", row.get("text"))
    if prompt is None:
        raise OnbrandError("request", f"a request has a prompt (or text); this has {', '.join(row) or 'nothing'}")
    image = row.get("image", row.get("file_name"))
    control = row.get("conditioning", row.get("conditioning_file_name")) or []
    files = control if isinstance(control, list) else [control]
    return Request(
        prompt=prompt,
        seed=row.get("seed", seed),
        class_name=row.get("class"),
        negative_prompt=row.get("negative_prompt", ""),
        image=None if image is None else str(folder / image),
        attributes=row.get("attributes"),
        conditioning=tuple(str(folder / file) if isinstance(file, str) else file for file in files),
    )


def images_of(requests: Sequence[Request], prior: Prior | None) -> Tensor:
    """(B, 3, H, W) in [-1, 1]: the requests' images, padded to the prior's size (else the first one's).

    OnbrandError for one that cannot be opened."""
    images = []
    background = (255, 255, 255) if prior is None else prior.provenance.background
    for request in requests:
        try:
            images.append(open_image(str(request.image), background=background))
        except UnreadableImage as error:
            raise OnbrandError("request", f"an image start needs images: {error}") from error
    size = (images[0].height, images[0].width) if prior is None else prior.provenance.resolution
    return torch.stack([to_tensor(pad(image, size, background)) for image in images])


def conditions_of(
    pipe: StableDiffusionPipeline, requests: Sequence[Request], config: SamplingSettings, size: tuple[int, int]
) -> dict[str, Any]:
    """What a pipeline with ControlNets is called with beside: a batch of control images (B, 3, H, W) in [0, 1] and a
    scale a ControlNet. size: (H, W) of the images to make; nothing for a pipeline without.

    OnbrandError for an image that cannot be opened."""
    nets = len(nets_of(pipe))
    if not nets:
        return {}
    images = [
        torch.stack([read_conditioning(request.conditioning[net], size) for request in requests]) for net in range(nets)
    ]
    weights = config.controlnet_conditioning_scale
    scales, single = list(weights) if isinstance(weights, tuple | list) else [weights] * nets, nets == 1
    return {"image": images[0] if single else images, "controlnet_conditioning_scale": scales[0] if single else scales}


def lay_over(images: Tensor, requests: Sequence[Request]) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with the control images' own pixels where these show something opaque; those
    without transparency (edges, poses) are not laid over. OnbrandError for one that cannot be opened."""
    images, size = images.clone(), (images.shape[2], images.shape[3])
    for image, request in zip(images, requests, strict=True):
        for file in request.conditioning:
            pixels, region = read_conditioning(file, size), open_region(file, size)
            if region is not None:
                image[:, region] = (2 * pixels - 1).to(image)[:, region]
    return images
