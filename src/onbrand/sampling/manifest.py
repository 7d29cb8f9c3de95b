"""A folder of pictures and its manifest: resumed after a kill, and any one picture made again from its line."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from onbrand.data.images import to_picture
from onbrand.models.controlnet import nets_of
from onbrand.models.pipeline import decode, device_of, fingerprint
from onbrand.models.scheduler import restore
from onbrand.options.generate import GenerateConfig
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import Picture, Plan, plan, run, scheduled
from onbrand.sampling.trace import Trace

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.sampling.sampler import Plan

LINES, SETTINGS = "manifest.jsonl", "config.json"
EARLIER = {
    "handoff": False, "zero_mean": False, "controlnet_scale": 1.0, "overlay": False, "look_ahead": 0,
    "look_ahead_projection": True,
}  # fmt: skip
"""What pictures were made with before there were these settings."""


def write(
    folder: str | Path,
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: GenerateConfig = GenerateConfig(),  # noqa: B008  (frozen)
    offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Iterator[Picture]:
    """Make the pictures that `folder` lacks, each written, then yielded; checked at the call (`sample.plan`).

    Writes 00000.png, ... , then each one's line in manifest.jsonl; config.json holds what all have in common. Killed at
    any moment and called again, it goes on where it was, to the same bytes. ValueError that names what differs, if the
    folder holds a run with other settings.
    """
    work, folder = plan(pipe, prior, requests, config, offset), Path(folder)
    settings = settings_of(work)
    done = _open(folder, settings, requests)
    return _write(folder, work, settings, done)


def read(folder: str | Path) -> dict[int, dict[str, Any]]:
    """The manifest's lines by index; a last line that a kill cut short is dropped. ValueError for any other damage."""
    path = Path(folder) / LINES
    if not path.is_file():
        raise ValueError(f"no pictures in {Path(folder).absolute()}: looked for {LINES}")
    whole, _ = _whole(path)
    entries = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            entries[int(entry["index"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number} is damaged ({error}): take it out and generate again") from error
    return entries


def remake(
    folder: str | Path, index: int, pipe: StableDiffusionPipeline, prior: Prior | None, alone: bool = False
) -> Picture:
    """Picture `index` of `folder`, made again from its line in the manifest alone.

    Made with the batch it was in and as many threads: the same bytes, on the same machine and versions. With `alone`,
    or where the manifest lacks the rest of its batch: by itself, within 1/255. ValueError for other weights, prior or
    dtype than recorded.
    """
    entries = read(folder)
    if index not in entries:
        raise ValueError(f"no picture {index} in {Path(folder).absolute()}: it has {len(entries)}")
    entry = entries[index]
    settings = json.loads((Path(folder) / SETTINGS).read_text())
    here = {"fingerprints": fingerprints(pipe, prior), "dtype": dtype_of(pipe)}
    compare(f"picture {index}", {key: settings[key] for key in here}, here)
    first, size = entry["batch"]["first"], entry["batch"]["size"]
    batch = [entries[i] for i in range(first, first + size) if i in entries]
    if len(batch) < size and not alone:
        warnings.warn(f"the manifest lacks part of the batch of picture {index}: made by itself", stacklevel=2)
    if alone or len(batch) < size:
        first, size, batch = index, 1, [entry]
    for name, recorded in entry["versions"].items():
        if version(name) != recorded:
            warnings.warn(f"picture {index} was made with {name} {recorded}; this is {version(name)}", stacklevel=2)
    config = GenerateConfig(**(EARLIER | settings["config"]))
    requests = [_request(line, config) for line in batch]
    config = replace(config, scheduler=None, spacing=None, karras=None, batch=size, trace=0)
    with _threads(entry["threads"]), scheduled(pipe, restore(settings["scheduler"])):
        made = list(run(plan(pipe, prior, requests, config, settings["offset"])))
    return replace(made[index - first], index=index, batch=(first, size))


def _write(folder: Path, work: Plan, settings: Mapping[str, Any], done: set[int]) -> Iterator[Picture]:
    common = {
        "start": work.config.start,
        "k": work.k,
        "look_ahead": work.config.look_ahead,
        "scheduler": {key: short(value) for key, value in settings["scheduler"].items()},
        "steps": work.config.steps,
        "first": work.schedule.first,
        "abar": work.schedule.abar,
        "guidance": work.config.guidance,
        "threads": torch.get_num_threads(),
        "device": device_of(work.pipe).type,
        "dtype": settings["dtype"],
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "fingerprints": settings["fingerprints"],
    }
    with open(folder / LINES, "ab") as lines:
        for picture in run(work, done):
            file = f"{picture.index:05d}.png"
            if picture.trace is not None:
                _write_trace(folder / "trace" / f"{picture.index:05d}", picture.trace, work)
            _write_png(folder / file, picture)
            entry = {
                "index": picture.index,
                "file": file,
                "prompt": picture.request.prompt,
                "class": picture.class_name,
                "seed": picture.request.seed,
                "negative_prompt": picture.request.negative_prompt,
                "attributes": picture.request.attributes,
                "image": picture.request.image,
                "image_sha256": _image_sha256(picture.request, work.config),
                **_conditioning(picture.request, work.pipe),
                "batch": _place(picture),
                **common,
            }
            lines.write(json.dumps(entry).encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
            yield picture


def _open(folder: Path, settings: Mapping[str, Any], requests: Sequence[Request]) -> set[int]:
    """Make the folder a run's with these settings, or find that it is; the indices that are done."""
    path = folder / SETTINGS
    if path.is_file():
        held = json.loads(path.read_text())
        held["config"] = EARLIER | held["config"]
        _check_asked(folder, requests)
        compare(f"the run in {folder.absolute()}", held, settings)
    else:
        if folder.is_dir() and ((folder / LINES).exists() or any(folder.glob("*.png"))):
            raise ValueError(f"{folder.absolute()} holds pictures, but no {SETTINGS}: take another folder")
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(draft, path)
    if not (folder / LINES).is_file():
        return set()
    whole, cut = _whole(folder / LINES)
    if cut:
        os.truncate(folder / LINES, len(whole))
    return {index for index, entry in read(folder).items() if (folder / entry["file"]).is_file()}


def _check_asked(folder: Path, requests: Sequence[Request]) -> None:
    """ValueError that names the first picture of a folder that was asked for with other words or another seed."""
    entries = read(folder) if (folder / LINES).is_file() else {}
    for index in (index for index in entries if index < len(requests)):
        for name in ("prompt", "negative_prompt", "seed"):
            was, now = entries[index][name], getattr(requests[index], name)
            if was != now:
                raise ValueError(
                    f"{folder.absolute()} holds other pictures: {name} of picture {index} was {was!r}, is {now!r}; "
                    "take another folder"
                )


def _whole(path: Path) -> tuple[bytes, bool]:
    """A file's bytes up to its last line's end, and whether anything came after."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    return content[:end], end < len(content)


def _place(picture: Picture) -> dict[str, int]:
    first, size = picture.batch
    return {"first": first, "size": size, "position": picture.index - first}


def _request(entry: Mapping[str, Any], config: GenerateConfig) -> Request:
    keys = ("prompt", "seed", "class", "negative_prompt", "image", "attributes")
    request = replace(Request(*(entry[key] for key in keys)), conditioning=tuple(entry.get("conditioning", ())))
    read = [sha256_of(file) for file in request.conditioning]
    if read != entry.get("conditioning_sha256", []):
        raise ValueError(f"{request.conditioning} are not the control pictures any more of picture {entry['index']}")
    if entry["image_sha256"] != _image_sha256(request, config):
        raise ValueError(f"{request.image} is not the picture any more that picture {entry['index']} started from")
    return request


def _image_sha256(request: Request, config: GenerateConfig) -> str | None:
    if config.start != "image" or request.image is None:
        return None
    return sha256_of(request.image)


def _conditioning(request: Request, pipe: StableDiffusionPipeline) -> dict[str, list[str]]:
    """The control pictures and their sha256, where the network read them."""
    if not nets_of(pipe):
        return {}
    files = list(request.conditioning)
    return {"conditioning": files, "conditioning_sha256": [sha256_of(file) for file in files]}


def _write_png(path: Path, picture: Picture) -> None:
    draft = path.with_suffix(".part")
    with open(draft, "wb") as file:
        picture.image.save(file, format="PNG")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _write_trace(folder: Path, trace: Trace, work: Plan) -> None:
    """00-t951-x.png (x_t decoded) and 00-t951-x0.png (x0_hat decoded), a pair a step."""
    folder.mkdir(parents=True, exist_ok=True)
    for step, timestep in enumerate(trace.timesteps):
        pair = decode(work.pipe, torch.stack([trace.x_t[step], trace.x0_hat[step]]))
        for pixels, name in zip(pair, ("x", "x0"), strict=True):
            to_picture(pixels).save(folder / f"{step:02d}-t{timestep:03.0f}-{name}.png")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def settings_of(work: Plan) -> dict[str, Any]:
    """What all pictures of a run have in common, as JSON."""
    told = [asdict(request) for request in work.requests]
    if nets_of(work.pipe):
        told = [one | {"read": [sha256_of(file) for file in one["conditioning"]]} for one in told]
    plain = [{name: value for name, value in one.items() if name != "conditioning" or value} for one in told]
    asked = json.dumps(plain)
    return {
        "config": json.loads(json.dumps(asdict(work.config))),
        "requests": {"count": len(work.requests), "sha256": hashlib.sha256(asked.encode()).hexdigest()},
        "fingerprints": fingerprints(work.pipe, work.prior),
        "dtype": dtype_of(work.pipe),
        "scheduler": {"class": work.schedule.name, **_plain(work.scheduler.config)},
        "offset": None if work.offset is None else dict(work.offset),
    }


def fingerprints(pipe: StableDiffusionPipeline, prior: Prior | None) -> dict[str, str | None]:
    """sha256 of what a picture is made with; the prior's is None without one."""
    modules = {name: fingerprint(getattr(pipe, name)) for name in ("unet", "vae", "text_encoder")}
    modules |= {f"controlnet {number}": fingerprint(net) for number, net in enumerate(nets_of(pipe), 1)}
    return {**modules, "prior": None if prior is None else prior.fingerprint}


def sha256_of(file: str) -> str:
    """Of a file's bytes, in hex."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def dtype_of(pipe: StableDiffusionPipeline) -> str:
    """The network's dtype by its name, as "float32"."""
    return str(pipe.unet.dtype).removeprefix("torch.")


def compare(what: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError naming each setting that differs."""
    then, here = _flat(recorded), _flat(now)
    skipped = {"config.trace"}  # leaves the pictures as they are
    differing = [key for key in {**then, **here} if then.get(key) != here.get(key) and key not in skipped]
    if differing:
        told = "; ".join(f"{key} was {short(then.get(key))!r}, is {short(here.get(key))!r}" for key in differing)
        raise ValueError(f"{what} was made with other settings: {told}. Set them so, or take another folder")


def short(value: Any) -> Any:
    """A long list (trained_betas) as its hash: the manifest has one line a picture."""
    if isinstance(value, list) and len(value) > 16:
        return "sha256:" + hashlib.sha256(json.dumps(value).encode()).hexdigest()
    return value


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON holds it, without diffusers' own notes."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(own, default=lambda value: value.tolist()))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
