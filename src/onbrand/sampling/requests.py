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
from onbrand.data.images import Refused, open_picture, pad, to_tensor
from onbrand.models.controlnet import nets_of
from onbrand.options.generate import GenerateConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


@dataclass(frozen=True)
class Request:
    """One picture that is asked for."""

    prompt: str
    """The caption."""
    seed: int
    """>= 0; the same noise in any batch."""
    class_name: str | None = None
    """Kind of picture; None: the prompt's prefix says it."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    image: str | None = None
    """File of the picture that an "image" start starts from."""
    attributes: Mapping[str, str] | None = None
    """What is to be seen, attribute -> label, for a reader to look for; None: what the prompt's words say."""
    conditioning: tuple[str, ...] = ()
    """Files of the control pictures, one for each ControlNet."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"a prompt is a text; got {self.prompt!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 on; got {self.seed!r}")
        named = {} if self.attributes is None else self.attributes
        if not isinstance(named, Mapping) or not all(isinstance(value, str) for value in named.values()):
            raise ValueError(f"attributes are an object of texts, as colour: red; got {self.attributes!r}")
        if not all(isinstance(file, str) for file in self.conditioning):
            raise ValueError(f"conditioning is the name of a file, or a list of them; got {self.conditioning!r}")


def read_requests(
    file: str | Path | None = None, *, prompt: str | None = None, count: int = 1, seed: int = 0
) -> list[Request]:
    """Requests from `file`, or `count` times `prompt` with the seeds seed, seed + 1, ...

    file: a .txt with one prompt a line, or one JSON object a line:
    prompt (or text), and optionally class, seed (else seed + its place in the file),
    negative_prompt, attributes, image (or file_name) and conditioning (or conditioning_file_name: one file or a list),
    relative to the file; other keys are not read, so that a photo folder's metadata.jsonl serves. ValueError, with the
    line, for what cannot be read.
    """
    if (file is None) == (prompt is None):
        raise ValueError("give either a file of requests or one prompt")
    if prompt is not None:
        if count < 1:
            raise ValueError(f"the number of pictures must be at least 1; got {count}")
        return [Request(prompt, seed + index) for index in range(count)]
    if count != 1:
        raise ValueError(f"count is for one prompt; got {count} and a file of requests: write each line {count} times")
    path = Path(str(file))
    if not path.is_file():
        raise ValueError(f"no file of requests at {path.absolute()}")
    requests: list[Request] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = {"prompt": line.strip()} if path.suffix == ".txt" else json.loads(line)
            requests.append(_read_line(row, seed + len(requests), path.parent))
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{path} line {number}: a request is a line of JSON, as {{"prompt": "..."}}, or of text in a .txt; '
                f"got {line[:60]!r} ({error.msg})"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from error
    if not requests:
        raise ValueError(f"no requests in {path.absolute()}")
    return requests


def _read_line(row: Any, seed: int, folder: Path) -> Request:
    if not isinstance(row, dict):
        raise ValueError(f"a request is a JSON object with a prompt; got {row!r}")
    prompt = row.get("prompt", row.get("text"))
    if prompt is None:
        raise ValueError(f"a request has a prompt (or text); this has {', '.join(row) or 'nothing'}")
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
