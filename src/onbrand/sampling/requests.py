"""What is asked for: a prompt, its class and its seed, from a file of JSON lines or from one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.data.conditioning import open_region, read_conditioning
from onbrand.data.images import open_image, pad, to_tensor
from onbrand.errors import OnbrandError, UnreadableImage, quote
from onbrand.io import text_lines
from onbrand.models.controlnet import nets_of
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.lines import NUMBERS, row_of_json, row_of_words

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

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
    height: int | None = None
    width: int | None = None
    """Of the image, in pixels; None: as the brand's or the model's are."""
    place: str = field(default="", compare=False)
    """Where it stands, as "prompts.txt line 3"; no part of what is asked for."""
    asked: Mapping[str, float | str] = field(default_factory=dict, compare=False)
    """What its line asks of a whole run, start, num_inference_steps or guidance_scale: compared with the run's
    (`warn_unread`), and no part of what is asked for."""

    def __post_init__(self) -> None:
        if isinstance(self.conditioning, str | list):
            files = self.conditioning
            object.__setattr__(self, "conditioning", (files,) if isinstance(files, str) else tuple(files))
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        for name, value in (("class", self.class_name), ("image", self.image)):
            if value is not None:
                _check_text(name, value, empty=False)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise OnbrandError("request", f"a seed is a whole number from 0 to 2^63 - 1; got {quote(self.seed)}")
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and (isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= 65536):
                raise OnbrandError("request", f"{name} is a whole number of pixels, 1 to 65536; got {quote(side)}")
        attributes = {} if self.attributes is None else self.attributes
        if not isinstance(attributes, Mapping) or not all(isinstance(value, str) for value in attributes.values()):
            raise OnbrandError(
                "request", f"attributes are an object of texts, as colour: red; got {quote(self.attributes)}"
            )
        if not isinstance(self.conditioning, tuple) or not all(
            isinstance(file, str) and file for file in self.conditioning
        ):
            raise OnbrandError(
                "request", f"conditioning is the name of a file, or a list of them; got {quote(self.conditioning)}"
            )


def place_of(requests: Sequence[Request], index: int) -> str:
    """Where a request stands, for a message."""
    return requests[index].place or f"request {index}"


def _check_text(name: str, value: Any, empty: bool = True) -> None:
    """OnbrandError for what is no text, or one that no file can hold."""
    if not isinstance(value, str) or not (value or empty):
        raise OnbrandError(
            "request", f"{name} must be a text{'' if empty else ' that is not empty'}; got {quote(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OnbrandError("request", f"{name} must be text that UTF-8 can hold; got {quote(value)}") from error
    if "\0" in value:
        raise OnbrandError("request", f"{name} must hold no NUL; got {quote(value)}: take it out")


def read_requests(
    file: str | Path | None = None,
    *,
    prompt: str | None = None,
    count: int = 1,
    seed: int = 0,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
) -> list[Request]:
    """Requests from `file`, or `count` times `prompt` with the seeds seed, seed + 1, ...

    file: one JSON object a line, or a .txt with one prompt a line; size: (H, W) of those that say none.

    JSON lines: prompt (or text), and optionally class, seed (else seed + its place in the file), negative_prompt (else
    `negative_prompt`), attributes, height and width, image (or file_name) and conditioning (or conditioning_file_name:
    one file or a list), relative to the file. Null is not given. A key besides these is an error, but in a line with
    file_name, which is a photo's: there other columns, height and width among them, are not read, so that a photo
    folder's metadata.jsonl serves.

    .txt: lines that begin with # are comments. Behind a prompt stand options as kohya's trainers read them: --n the
    negative prompt, --d the seed, --s steps, --l guidance, --w and --h the size; A1111's --prompt "...",
    --negative_prompt, --seed, --steps, --cfg_scale, --width, --height are read too. Steps and guidance are a whole
    run's: a line that asks for others is warned of when images are made (`warn_unread`).

    Every line is read before anything is returned: OnbrandError for the first that cannot be, with its number, and the
    numbers of the others.
    """
    if (file is None) == (prompt is None):
        raise OnbrandError(
            "request",
            "give either a file of requests (prompts) or one prompt (prompt); got "
            + ("both" if file is not None else "neither"),
        )
    if prompt is not None:
        if count < 1:
            raise OnbrandError("request", f"num_images_per_prompt must be at least 1; got {count}")
        height, width = size or (None, None)
        own = {"negative_prompt": negative_prompt, "height": height, "width": width}
        return [Request(prompt, seed + index, **own) for index in range(count)]  # type: ignore[arg-type]
    if count != 1:
        raise OnbrandError(
            "request",
            f"num_images_per_prompt is of a single prompt; got {count} and a file of requests: write each line {count} "
            "times",
        )
    path = Path(str(file))
    if not path.is_file():
        raise OnbrandError("request", f"no file of requests at {path.absolute()}: give a .txt, or a file of JSON lines")
    defaults = {"seed": seed, "negative_prompt": negative_prompt, "size": size}
    requests = list(_requests_in(path, defaults))
    if not requests:
        raise OnbrandError("request", f"no requests in {path.absolute()}: write one a line")
    return requests


def _requests_in(path: Path, defaults: Mapping[str, Any]) -> Iterator[Request]:
    """The requests of a file; after the last line OnbrandError for the first that cannot be read."""
    errors: dict[int, OnbrandError] = {}
    words, count = path.suffix.lower() == ".txt", 0
    for number, line in text_lines(path, "request"):
        if words and line.lstrip().startswith("#"):
            continue
        count, place = count + 1, f"{path} line {number}"
        try:
            row = row_of_words(line.strip()) if words else row_of_json(line, place)
            yield _read_row(row, {**defaults, "seed": defaults["seed"] + count - 1}, path.parent, place)
        except OnbrandError as error:
            errors[number] = error if place in str(error) else OnbrandError("request", f"{place}: {error}")
    if errors:
        first, *others = errors
        more = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        raise OnbrandError(
            "request", f"{errors[first]}" + (f" (lines that cannot be read besides: {more})" if more else "")
        )


def _read_row(row: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path, place: str) -> Request:
    """The request of a row, files relative to `folder`."""
    if "prompt" not in row:
        raise OnbrandError("request", f"a request has a prompt (or text); this has {', '.join(row) or 'nothing'}")
    image, control = row.get("image"), row.get("conditioning", [])
    files = control if isinstance(control, list) else [control]
    height, width = (None, None) if {"height", "width"} & set(row) else defaults["size"] or (None, None)
    return Request(
        prompt=row["prompt"],
        seed=row.get("seed", defaults["seed"]),
        class_name=row.get("class"),
        negative_prompt=row.get("negative_prompt", defaults["negative_prompt"]),
        image=str(folder / image) if isinstance(image, str) and image else image,
        attributes=row.get("attributes"),
        conditioning=tuple(str(folder / file) if isinstance(file, str) and file else file for file in files),
        height=row.get("height", height),
        width=row.get("width", width),
        place=place,
        asked={key: row[key] for key in ("start", *NUMBERS) if key in row and key not in ("seed", "height", "width")},
    )


def images_of(requests: Sequence[Request], prior: Prior | None, size: tuple[int, int] | None) -> Tensor:
    """(B, 3, H, W) in [-1, 1]: the requests' images, padded to `size` (None: the first one's).

    OnbrandError for one that cannot be opened."""
    images = []
    background = (255, 255, 255) if prior is None else prior.provenance.background
    for request in requests:
        try:
            images.append(open_image(str(request.image), background=background))
        except UnreadableImage as error:
            raise OnbrandError("request", f"an image start needs images: {error}") from error
    size = size or (images[0].height, images[0].width)
    return torch.stack([to_tensor(pad(image, size, background)) for image in images])


def conditions_of(
    pipe: DiffusionPipeline, requests: Sequence[Request], config: SamplingSettings, size: tuple[int, int]
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
