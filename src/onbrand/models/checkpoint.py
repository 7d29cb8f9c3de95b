"""The start that weights were trained with, kept beside them in onbrand/config.json: what theirs must agree with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onbrand.core.prior import save_all
from onbrand.errors import OnbrandError, quote
from onbrand.hub import fetched, is_hub_id
from onbrand.io import read_content, read_json, write_json
from onbrand.models.weights import read_metadata

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

SCHEMA = 2
"""Of onbrand/config.json, and of the metadata of a LoRA."""
LORA = "pytorch_lora_weights.safetensors"
"""diffusers' name of a LoRA's file; a folder that holds it and no model_index.json is a LoRA's."""
PEFT_LORA = "adapter_model.safetensors"
"""peft's name of one."""
BESIDE = ("model_index.json", LORA, PEFT_LORA, "onbrand/*.json", "onbrand/*.safetensors")
"""What tells of a repository on the Hub what it is, and how it was trained."""

KEYS = ("schema", "gain", "start", "k", "start_timestep", "prior")
"""gain: "window" | "constant" · start: "mean" | "pca" | "text" · k: its components · start_timestep: the window's first
timestep, or the one that the constant gain's start belongs to · prior: fingerprint of the prior trained with."""


def checked(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record by the present KEYS; OnbrandError, saying `where`, unless it is whole and has no others."""
    entries = _upgraded(record) if isinstance(record, Mapping) else {}
    timestep = entries.get("start_timestep")
    if isinstance(timestep, float) and timestep.is_integer():  # as schedulers name it
        entries["start_timestep"] = int(timestep)
    from onbrand.schemas import TrainedStart, fault

    reason = fault(entries, TrainedStart)
    if set(entries) - set(KEYS) or reason:
        raise OnbrandError(
            "checkpoint",
            f"{where}: weights trained with a start record gain (window or constant), start (mean, pca or text) and "
            f"start_timestep; keys {', '.join(KEYS)}; got {quote(dict(record), 200)} ({reason or 'another key'}): copy "
            "it anew",
        )
    return entries


def _upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of schema 1, where the start was called kind and its timestep first or start, by the present names."""
    if "kind" not in record:
        return {"schema": SCHEMA, **record}
    others = {name: value for name, value in record.items() if name not in ("kind", "first", "start")}
    timestep = record.get("first" if record.get("gain") == "window" else "start")
    return {"schema": SCHEMA, "start": record["kind"], "start_timestep": timestep, **others}


def model_folder(folder: str | Path) -> Path:
    """`folder`, or the `model/` inside it if it is a run folder; of a Hub id the folder here with BESIDE of it."""
    if is_hub_id(folder):
        return fetched(Path(folder).as_posix(), BESIDE, "model")
    folder = Path(folder).expanduser()
    inner, marks = folder / "model", ("model_index.json", LORA)
    holds = [any((here / mark).exists() for mark in marks) for here in (folder, inner)]
    return inner if holds == [False, True] else folder


def lora_metadata(lora: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of the LoRA at `lora` (the file, a model or run folder with one, a folder of peft's, a Hub id), and what
    onbrand wrote into it: base, the model that it was trained on, and trained_start (KEYS; None: noise). Of another
    trainer's: trained_start if a record lies beside it, or an empty dict.

    OnbrandError if there is no such file, or it is damaged."""
    path = Path(lora).expanduser()
    file = path
    if path.is_dir() or is_hub_id(path):
        folder = model_folder(path)
        places = (folder / LORA, folder / PEFT_LORA)
        file = next((place for place in places if place.is_file()), path)
    if file.suffix != ".safetensors" or not file.is_file():
        here = "another file" if path.is_file() else "which is not there"
        here = "a folder without" if path.is_dir() else "a repository without" if is_hub_id(path) else here
        raise OnbrandError(
            "checkpoint",
            f"a LoRA is a .safetensors file, or a folder that holds {LORA} or {PEFT_LORA}; got {path.absolute()}, "
            f"{here}: give another",
        )
    text = read_metadata(file, "lora").get("onbrand")
    if text is None:  # another trainer's, which leaves the record beside it if it is patched
        start = trained_start_in(file.parent)
        return file, {"trained_start": start} if start else {}
    metadata = read_content(text, f"what onbrand wrote into {file}", "lora")
    start = metadata.pop("offset", None) or metadata.get("trained_start")  # offset: its name in schema 1
    return file, metadata | {"trained_start": checked(start, str(file)) if start else None}


def is_lora(folder: str | Path) -> bool:
    """Whether `folder` (a model or run folder) holds a LoRA and no whole model."""
    folder = model_folder(folder)
    return (folder / LORA).is_file() and not (folder / "model_index.json").exists()


def base_of(lora: str | Path) -> str:
    """The model that the LoRA at `lora` was trained on, as it says itself; OnbrandError if it does not."""
    base: str | None = lora_metadata(lora)[1].get("base")
    if not base:
        raise OnbrandError(
            "checkpoint",
            f"the LoRA at {lora} does not say what it was trained on: give that as the model, and it as lora",
        )
    return base


def write_record(folder: Path, prior: Prior | None, trained_start: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write `folder`/onbrand/{prior.safetensors, buckets/, config.json}; the record as it stands there, empty for plain
    weights.

    trained_start: as `checked` takes it; the prior's fingerprint is added."""
    beside = folder / "onbrand"
    record = {} if trained_start is None else checked(trained_start, "trained_start")
    if prior is not None:
        record = {**record, "prior": prior.fingerprint} if record else record
        save_all(prior, beside)
    if record:
        write_json(beside / "config.json", record)
    else:
        (beside / "config.json").unlink(missing_ok=True)
    return record


def trained_start_in(folder: str | Path) -> dict[str, Any] | None:
    """The start that the weights in `folder` (a model or run folder) were trained with (KEYS); None: noise."""
    file = model_folder(folder) / "onbrand" / "config.json"
    record = read_json(file, "onbrand/config.json", _upgraded)
    return checked(record, str(file)) if record else None


def trained_start_of(pipe: DiffusionPipeline) -> dict[str, Any] | None:
    """The start that the weights of `pipe` were trained with, by the folder, the LoRA or the Hub's repository it was
    loaded from; None: noise, or it was loaded from none of them."""
    origin = pipe.config.get("_name_or_path")
    if origin and Path(origin).is_file() and Path(origin).suffix == ".safetensors":
        return lora_metadata(origin)[1].get("trained_start")
    if origin and is_hub_id(origin):
        try:
            origin = model_folder(origin)
        except OnbrandError as error:  # a pipeline of another cache than the Hub's own, without a network
            warnings.warn(f"taken for plain weights, or pass trained_start: {error}", stacklevel=2)
    return trained_start_in(origin) if origin and Path(origin).is_dir() else None


def record_of(
    pipe: DiffusionPipeline, trained_start: Mapping[str, Any] | Literal["recorded"] | None
) -> dict[str, Any] | None:
    """The start that the weights were trained with, by the present KEYS: as `trained_start` says, or its own record.

    OnbrandError for what is no record.
    """
    if trained_start is None or isinstance(trained_start, Mapping):
        return None if trained_start is None else checked(trained_start, "trained_start")
    return trained_start_of(pipe)
