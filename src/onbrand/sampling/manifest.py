"""A folder of images and its manifest: resumed after a kill, and any one image made again from its line."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, Literal

import torch

from onbrand.core.prior import name_of
from onbrand.data.images import is_whole, to_image
from onbrand.errors import OnbrandError
from onbrand.io import append, digest, read_content, read_json, whole_file, whole_folder, write_json, write_png
from onbrand.models.checkpoint import checked
from onbrand.models.controlnet import nets_of
from onbrand.models.families import encoders_of
from onbrand.models.pipeline import decode, device_of, fingerprint
from onbrand.models.scheduler import restore
from onbrand.options.former import upgrade
from onbrand.options.generate import SamplingSettings
from onbrand.ranks import claims, from_first, gather, rank
from onbrand.sampling.draws import Gate, number_of
from onbrand.sampling.record import SIDES, changed, request_of, requested, sha256_of, some
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import GeneratedImage, Plan, overflow, plan, run, usable
from onbrand.sampling.stochastic import scheduled
from onbrand.sampling.trace import Trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.sampling.sampler import Plan

LINES, SETTINGS, TABLE = "manifest.jsonl", "config.json", "manifest.parquet"
PART = "manifest-{}.jsonl"
"""The lines of a process of several, by its rank, until all are done."""
FLAT = 1000
"""More images than these go into folders of so many each, and their manifest is also written as TABLE."""
SHARED = ("class", "start", "scheduler", "device", "dtype", "versions", "fingerprints")
"""What lines of a run have in common: held once in memory, as their keys are."""
LIBRARIES = ("torch", "diffusers", "transformers")
"""Whose versions an image depends on."""
ELSEWHERE = ("place", "asked")
"""Of a request: what is no part of what is asked for."""
LATER = ("conditioning", *SIDES)
"""What earlier versions did not have: it counts where it is given."""
SCHEMA = 2
"""Of config.json and of the manifest's lines."""


def write_images(
    folder: str | Path,
    pipe: DiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: SamplingSettings = SamplingSettings(),  # noqa: B008  (frozen)
    trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
    open_gate: Callable[[Plan], Gate] | None = None,
) -> Iterator[GeneratedImage]:
    """Make the images that `folder` lacks, each written, then yielded; checked at the call (`sampler.plan`).

    open_gate: opens what decides which images are drawn again.

    Writes 00000.png, ... (of more than FLAT 00000/00000.png, ...), then each one's line in manifest.jsonl; config.json
    holds what all have in common. Killed at any moment and called again, it goes on where it was, to the same bytes. If
    the folder holds a run with other settings, an OnbrandError names what differs. Of several processes (`ranks`) each
    makes some of the batches.
    """
    work, folder = plan(pipe, prior, requests, config, trained_start), Path(folder)
    gate = open_gate(work) if open_gate else None
    settings = settings_of(work) | ({"gate": dict(gate.settings)} if gate else {})
    indices, nested = from_first(lambda: _open(folder, settings, work))
    return _write(folder, work, settings, indices, nested, gate)


def read_manifest(folder: str | Path) -> dict[int, dict[str, Any]]:
    """The manifest's lines by index, the last one of each; one that a kill cut short at the end is dropped.

    OnbrandError for no such file, and for any other damage, with the line's number and field.
    """
    if not (Path(folder) / LINES).is_file():
        raise OnbrandError("folder", f"no images in {Path(folder).absolute()}: looked for {LINES}")
    entries: dict[int, dict[str, Any]] = {}
    shared: dict[str, list[Any]] = {}
    for place, line in _lines(Path(folder)):
        content = read_content(line, place, LINES)
        entry = {intern(name): value for name, value in content.items()}
        values = [entry[name] for name in SHARED]
        entry.update(zip(SHARED, shared.setdefault(json.dumps(values), values), strict=True))
        entries[entry["index"]] = entry
    return entries


def write_table(folder: str | Path, entries: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the manifest of more than FLAT images as a Parquet table, a row an image in their order.

    A key that a line lacks is null there, and so is an object without keys, which Parquet cannot hold.
    """
    if len(entries) <= FLAT:
        return
    import pyarrow
    from pyarrow import parquet

    rows = [entries[index] for index in sorted(entries)]
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [None if row.get(name) == {} else row.get(name) for row in rows] for name in names}
    with whole_file(Path(folder) / TABLE) as draft:
        parquet.write_table(pyarrow.table(values), draft)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What all images of a folder have in common, upgraded from schema 1.

    OnbrandError for no such file, a damaged one, and one of a later schema than this version knows.
    """
    file = Path(folder) / SETTINGS
    if not file.is_file():
        holds = "images, but no" if (Path(folder) / LINES).is_file() else "no images, nor a"
        raise OnbrandError(
            "folder",
            f"{Path(folder).absolute()} holds {holds} {SETTINGS}, which says how they were made: copy it from where "
            "they were made, or give another output_dir",
        )
    from onbrand.schemas import fault

    content = read_json(file, former=_upgraded)
    unknown = sorted(set(content["settings"]) - set(SamplingSettings.__dataclass_fields__))
    reason = f"it has {', '.join(unknown)}, which is no setting" if unknown else ""
    reason = reason or fault(content["settings"], SamplingSettings)
    if reason:
        raise OnbrandError("folder", f"{file} is damaged: in its settings, {reason}; give another output_dir")
    return content


def _upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of schema 1 as one of the present schema."""
    if "schema" in content:
        return dict(content)
    others = {name: value for name, value in content.items() if name not in ("config", "offset")}
    start = content["offset"]
    return {
        "schema": SCHEMA,
        "settings": upgrade("generate", content["config"]),
        "trained_start": start and checked(start, "trained_start"),
        **others,
    }


def remake(
    folder: str | Path, index: int, pipe: DiffusionPipeline, prior: Prior | None, alone: bool = False
) -> GeneratedImage:
    """GeneratedImage `index` of `folder`, made again from its line in the manifest alone.

    Made with the batch it was in and as many threads: the same bytes, on the same machine and versions. With `alone`,
    or where the manifest lacks the rest of its batch: by itself, within 1/255. OnbrandError for other weights, prior or
    dtype than recorded.
    """
    entries = read_manifest(folder)
    if index not in entries:
        raise OnbrandError("folder", f"no image {index} in {Path(folder).absolute()}: it has {len(entries)}")
    entry = entries[index]
    settings = read_settings(folder)
    here = {"fingerprints": fingerprints(pipe, prior), "dtype": dtype_of(pipe)}
    check_settings(f"image {index}", {key: settings[key] for key in here}, here)
    first, size = int(entry["batch"]["first"]), int(entry["batch"]["size"])
    batch = [entries[i] for i in range(first, first + size) if i in entries]
    if len(batch) < size and not alone:
        warnings.warn(f"the manifest lacks part of the batch of image {index}: made by itself", stacklevel=2)
    if alone or len(batch) < size:
        first, size, batch = index, 1, [entry]
    number = number_of(entry)
    if number:  # those that were drawn again together
        lines = [line for line in batch if len(line["draws"]) > number]
        batch = [{**line, "seed": line["draws"][number]["seed"]} for line in lines]
    for name in LIBRARIES:
        if entry["versions"].get(name) != version(name):
            number = entry["versions"].get(name, "of another version")
            warnings.warn(f"image {index} was made with {name} {number}; this is {version(name)}", stacklevel=2)
    config = SamplingSettings(**settings["settings"])
    requests = [request_of(line, config) for line in batch]
    config = replace(config, scheduler=None, timestep_spacing=None, use_karras_sigmas=None, batch_size=size, trace=0)
    with _threads(entry["threads"]), scheduled(pipe, restore(settings["scheduler"])):
        work = plan(pipe, prior, requests, config, settings["trained_start"])
        image = list(run(work))[[line["index"] for line in batch].index(index)]
    return replace(usable(work, image), index=index, batch=(first, size))


def _write(
    folder: Path, work: Plan, settings: Mapping[str, Any], indices: set[int], nested: bool, gate: Gate | None
) -> Iterator[GeneratedImage]:
    common = {
        "schema": SCHEMA,
        "start": work.start.start,
        "k": work.start.k,
        "look_ahead": work.config.look_ahead,
        "scheduler": {key: short(value) for key, value in settings["scheduler"].items()},
        "num_inference_steps": work.config.num_inference_steps,
        "start_timestep": work.start.schedule.first,
        "abar": work.start.schedule.abar,
        "guidance_scale": work.config.guidance_scale,
        "threads": torch.get_num_threads(),
        "device": device_of(work.pipe).type,
        "dtype": settings["dtype"],
        "versions": {name: version(name) for name in LIBRARIES},
        "fingerprints": settings["fingerprints"],
    }
    failed: list[int] = []
    with append(folder / (PART.format(rank()) if rank() else LINES)) as lines:
        for image in run(work, indices, claims, gate):
            if not image.finite:
                failed.append(image.index)
                continue
            file = f"{image.index // FLAT:05d}/" * nested + f"{image.index:05d}.png"
            if image.trace is not None:
                _write_trace(folder / "trace" / f"{image.index:05d}", image.trace, work)
            write_png(folder / file, image.image, durable=True)
            entry = {
                "index": image.index,
                "file": file,
                **requested(work, image.index),
                "seed": image.request.seed,
                **({"draws": [asdict(one) for one in image.draws]} if gate else {}),
                "batch": _place(image),
                **common,
            }
            lines.write(json.dumps(entry).encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())
            yield image
    failed = sorted(chain(*gather(failed)))
    from_first(lambda: _put_in_order(folder))
    if failed:
        raise OnbrandError(
            "image",
            f"{len(failed)} of {len(work.requests)} images could not be made ({some(failed)}), the others are in "
            f"{folder.absolute()}: {overflow(work)}",
        )


def _open(folder: Path, settings: Mapping[str, Any], work: Plan) -> tuple[set[int], bool]:
    """Make the folder a run's with these settings, or find that it is; the indices that are done, and whether images
    go into folders of FLAT: as those that are there do."""
    path = folder / SETTINGS
    entries: dict[int, dict[str, Any]] = {}
    if path.is_file():
        former = read_settings(folder)
        entries = read_manifest(folder) if (folder / LINES).is_file() else {}
        mended = changed(folder, entries, work)
        common = {name: value for name, value in settings.items() if name != "requests"}
        check_settings(
            f"the run in {folder.absolute()}",
            {name: value for name, value in former.items() if name != "requests"},
            common,
        )
        if mended:
            warnings.warn(
                f"{len(mended)} of {len(work.requests)} requests are others than before (image {some(mended)}): their "
                "images are made again",
                stacklevel=6,
            )
        if former["requests"] != settings["requests"]:
            write_json(path, settings)
        for index in mended:  # killed and asked for as before, its line is not to stand for the new image
            (folder / entries[index]["file"]).unlink(missing_ok=True)
        entries = {index: entry for index, entry in entries.items() if index not in mended}
    else:
        if folder.is_dir() and ((folder / LINES).exists() or any(folder.glob("*.png"))):
            raise OnbrandError("folder", f"{folder.absolute()} holds images, but no {SETTINGS}: take another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    nested = "/" in next(iter(entries.values()))["file"] if entries else len(work.requests) > FLAT
    parts = [folder, *(part for part in folder.iterdir() if nested and part.name.isdecimal())]
    if linked := [part for part in parts[1:] if part.is_symlink()]:
        raise OnbrandError(
            "folder", f"{linked[0]} is a link; nothing is written through one: put what it leads to in its place"
        )
    for part in parts:
        for draft in part.glob(".*.png.*.tmp"):  # of a process that was killed
            draft.unlink(missing_ok=True)
    append(folder / LINES).close()  # before any other process has lines
    size = sum(map(len, _complete_lines(folder / LINES)))
    if size < (folder / LINES).stat().st_size:
        os.truncate(folder / LINES, size)
    _put_in_order(folder)
    there = {index for index, entry in entries.items() if (folder / entry["file"]).is_file()}
    files = {index: folder / entries[index]["file"] for index in there}
    damaged = sorted(index for index, file in files.items() if file.is_symlink() or not is_whole(file))
    if damaged:
        warnings.warn(
            f"{len(damaged)} of {len(there)} images in {folder.absolute()} are empty, cut short, damaged or links "
            f"(image {some(damaged)}): they are made again",
            stacklevel=6,
        )
    done = there - set(damaged)
    if len(done) < len(work.requests):
        (folder / TABLE).unlink(missing_ok=True)  # until it holds all of them again
    return done, nested


def _lines(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The manifest's lines, each with its place; behind them those that other processes of a run have added."""
    for path in (folder / LINES, *sorted(folder.glob(PART.format("*")))):
        for number, line in enumerate(_complete_lines(path), 1):
            if line.strip():
                yield f"{path} line {number}", line


def _put_in_order(folder: Path) -> None:
    """Make the manifest that of one process: a line an image, in order, and no other process's lines beside it."""
    lines = [(int(json.loads(line)["index"]), line) for _, line in _lines(folder)]
    in_order, parts = sorted(dict(lines).items()), list(folder.glob(PART.format("*")))
    if parts or lines != in_order:
        with whole_file(folder / LINES, durable=True) as draft:
            draft.write_bytes(b"".join(line for _, line in in_order))
    for part in parts:
        part.unlink()


def _complete_lines(path: Path) -> Iterator[bytes]:
    """A file's lines, but a last one without its end."""
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _place(image: GeneratedImage) -> dict[str, int]:
    first, size = image.batch
    return {"first": first, "size": size, "position": image.index - first}


def _write_trace(folder: Path, trace: Trace, work: Plan) -> None:
    """00-t951-x.png (x_t decoded) and 00-t951-x0.png (x0_hat decoded), a pair a step."""
    with whole_folder(folder) as draft:
        for step, timestep in enumerate(trace.timesteps):
            pair = decode(work.pipe, torch.stack([trace.x_t[step], trace.x0_hat[step]]))
            for pixels, name in zip(pair, ("x", "x0"), strict=True):
                to_image(pixels).save(draft / f"{step:02d}-t{timestep:03.0f}-{name}.png")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def settings_of(work: Plan) -> dict[str, Any]:
    """What all images of a run have in common, as JSON."""
    entries = [asdict(request) for request in work.requests]
    if nets_of(work.pipe):
        entries = [entry | {"read": [sha256_of(file) for file in entry["conditioning"]]} for entry in entries]
    plain = [
        {name: value for name, value in entry.items() if name not in ELSEWHERE and (name not in LATER or value)}
        for entry in entries
    ]
    return {
        "schema": SCHEMA,
        "settings": json.loads(json.dumps(asdict(work.config))),
        "requests": {"count": len(work.requests), "sha256": digest(plain)},
        "fingerprints": fingerprints(work.pipe, work.prior),
        "dtype": dtype_of(work.pipe),
        "scheduler": {"class": work.start.schedule.name, **_plain(work.start.scheduler.config)},
        "trained_start": None if work.start.trained_start is None else dict(work.start.trained_start),
    }


def fingerprints(pipe: DiffusionPipeline, prior: Prior | None) -> dict[str, str | None]:
    """sha256 of what an image is made with; the prior's is None without one."""
    modules = {name: fingerprint(getattr(pipe, name)) for name in ("unet", "vae", *encoders_of(pipe))}
    modules |= {f"controlnet {number}": fingerprint(net) for number, net in enumerate(nets_of(pipe), 1)}
    others = {f"prior {name_of(one.size)}": one.fingerprint for one in (prior.all[1:] if prior else ())}
    return {**modules, "prior": None if prior is None else prior.fingerprint, **others}


def dtype_of(pipe: DiffusionPipeline) -> str:
    """The network's dtype by its name, as "float32"."""
    return str(pipe.unet.dtype).removeprefix("torch.")


def check_settings(what: str, former: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """OnbrandError naming each setting that differs."""
    then, here = _flat(former), _flat(now)
    ignored = {"schema", "trained_start.schema", "settings.trace"}  # leaves the images as they are
    differing = [key for key in {**then, **here} if then.get(key) != here.get(key) and key not in ignored]
    if differing:
        words = "; ".join(f"{key} was {short(then.get(key))!r}, is {short(here.get(key))!r}" for key in differing)
        raise OnbrandError(
            "folder", f"{what} was made with other settings: {words}. Set them so, or take another folder"
        )


def short(value: Any) -> Any:
    """A long list (trained_betas) as its hash: the manifest has one line an image."""
    if isinstance(value, list) and len(value) > 16:
        return "sha256:" + digest(value)
    return value


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON holds it, without diffusers' own notes."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(own, default=lambda value: value.tolist()))
    return plain


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
