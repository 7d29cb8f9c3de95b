"""A request as the manifest's line of its image records it, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.data.images import read_bytes
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import digest
from onbrand.models.controlnet import nets_of
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PLACES = {"image", "conditioning"}
"""Where files were. They may lie elsewhere now: what is in them counts, by its sha256."""
SIDES = ("height", "width")
"""Of a request that asks for a size; one that does not says nothing of it."""


def changed(folder: Path, entries: Mapping[int, Mapping[str, Any]], work: Plan) -> set[int]:
    """The images of a folder that are asked for otherwise now, by index: some lines of a file were mended.

    Raises:
        OnbrandError: it is another file: it has fewer requests, or those of most images differ.
    """
    if entries and max(entries) >= len(work.requests):
        raise OnbrandError(
            "folder",
            f"{folder.absolute()} holds an image {max(entries)}, and only {len(work.requests)} requests are given now: "
            "give the others too, or take another folder",
        )
    indices, first = set(), ""
    for index, entry in entries.items():
        now = requested(work, index)
        entry = {**entry, "seed": entry["draws"][0]["seed"]} if entry.get("draws") else entry
        names = [name for name, value in now.items() if name not in PLACES and entry.get(name, value) != value]
        names += [name for name in SIDES if entry.get(name) != now.get(name)]
        if names:
            indices.add(index)
            name = names[0]
            first = first or f"{name} of image {index} was {said(entry.get(name))}, is {said(now.get(name))}"
    if 2 * len(indices) > len(entries):
        raise OnbrandError(
            "folder",
            f"{folder.absolute()} holds other images, {len(indices)} of {len(entries)}: {first}; take another folder",
        )
    return indices


def requested(work: Plan, index: int) -> dict[str, Any]:
    """What the manifest says of a request, by its keys there."""
    request = work.requests[index]
    return {
        "prompt": request.prompt,
        "class": None if work.classes is None else work.classes[index],
        "seed": request.seed,
        "negative_prompt": request.negative_prompt,
        "attributes": request.attributes if request.attributes is None else dict(request.attributes),
        "image": request.image,
        "image_sha256": image_sha256(request, work.config),
        **conditioning_of(request, work.pipe),
        **{name: side for name in SIDES if (side := getattr(request, name)) is not None},
    }


def request_of(entry: Mapping[str, Any], config: SamplingSettings) -> Request:
    """The request that a line of the manifest records. OnbrandError if its files are others now."""
    keys = ("prompt", "seed", "class", "negative_prompt", "image", "attributes")
    own: dict[str, Any] = {name: entry.get(name) for name in SIDES}
    own["conditioning"] = tuple(entry.get("conditioning") or ())
    request = replace(Request(*(entry[key] for key in keys)), **own)
    digests = [sha256_of(file) for file in request.conditioning]
    if digests != (entry.get("conditioning_sha256") or []):
        raise OnbrandError(
            "folder",
            f"{said(request.conditioning)}: the control image of image {entry['index']} is another now; put back what "
            "it was made with",
        )
    if entry["image_sha256"] != image_sha256(request, config):
        raise OnbrandError(
            "folder",
            f"{request.image} is not the image any more that image {entry['index']} started from; put that back",
        )
    return request


def image_sha256(request: Request, config: SamplingSettings) -> str | None:
    """Of the image that the request starts from; None if it starts from none."""
    if config.start != "image" or request.image is None:
        return None
    return sha256_of(request.image)


def conditioning_of(request: Request, pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """The control images and their sha256, where the network read them."""
    if not nets_of(pipe):
        return {}
    files = list(request.conditioning)
    return {"conditioning": files, "conditioning_sha256": [sha256_of(file) for file in files]}


def sha256_of(file: str) -> str:
    """Of a file's bytes, in hex. OnbrandError if it cannot be read."""
    try:
        return digest(read_bytes(file))
    except UnreadableImage as error:
        raise OnbrandError("request", f"{file}: {error.reason}; put it back, or name another") from error


def said(value: object) -> str:
    """A value of a request as an error shows it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return repr(value)


def some(indices: Iterable[int], most: int = 10) -> str:
    """Images by their numbers, the first ones."""
    listed = sorted(indices)
    words = ", ".join(map(str, listed[:most]))
    return words + (f" and {len(listed) - most} more" if len(listed) > most else "")
