"""How weights were offset-trained, kept beside them in onbrand/config.json: what a start of theirs must agree with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior

LORA = "pytorch_lora_weights.safetensors"
"""diffusers' name of a LoRA's file; a folder that holds it and no model_index.json is a LoRA's."""

KEYS = ("gain", "kind", "k", "first", "start", "prior")
"""gain: "window" | "constant" · kind: the start trained with, "mean" | "pca" | "text" · k: its components · first: the
window's first timestep · start: the constant gain's · prior: fingerprint of the prior trained with."""


def checked(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record as it is; ValueError, saying `where`, unless it is whole and has no other keys than KEYS."""
    unknown = set(record) - set(KEYS)
    needed = {"window": "first", "constant": "start"}.get(str(record.get("gain")))
    if unknown or needed is None or not isinstance(record.get(needed), int) or "kind" not in record:
        raise ValueError(
            f"{where}: offset-trained weights record gain (window, with first, or constant, with start) and kind; "
            f"keys {', '.join(KEYS)}; got {dict(record)}"
        )
    return dict(record)


def model_folder(folder: str | Path) -> Path:
    """`folder`, or the `model/` inside it if it is a run folder."""
    folder = Path(folder).expanduser()
    inner, marks = folder / "model", ("model_index.json", LORA)
    holds = [any((here / mark).exists() for mark in marks) for here in (folder, inner)]
    return inner if holds == [False, True] else folder


def half_alone(part: Path) -> bool:
    """Whether a model's part has its weights in half precision alone (diffusers' variant fp16)."""
    return not (part / "diffusion_pytorch_model.safetensors").exists() and any(part.glob("*.fp16.safetensors"))


def lora_metadata(lora: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of the LoRA at `lora` (the file, or a model or run folder with one), and what onbrand wrote into it:
    base, the model that it was trained on, and offset, how (KEYS; None: plainly). An empty dict: not onbrand's.

    ValueError where there is no such file."""
    path = Path(lora).expanduser()
    file = path if path.is_file() else model_folder(path) / LORA
    if file.suffix != ".safetensors" or not file.is_file():
        here = "which is not there" if not path.exists() else "a folder without" if path.is_dir() else "another file"
        raise ValueError(f"a LoRA is a .safetensors file, or a folder that holds {LORA}; got {path.absolute()}, {here}")
    with safe_open(file, "pt") as opened:
        told = json.loads((opened.metadata() or {}).get("onbrand", "{}"))
    if told.get("offset"):
        checked(told["offset"], str(file))
    return file, told


def is_lora(folder: str | Path) -> bool:
    """Whether `folder` (a model or run folder) holds a LoRA and no whole model."""
    folder = model_folder(folder)
    return (folder / LORA).is_file() and not (folder / "model_index.json").exists()


def base_of(lora: str | Path) -> str:
    """The model that the LoRA at `lora` was trained on, as it says itself; ValueError where it does not."""
    base = lora_metadata(lora)[1].get("base")
    if not base:
        raise ValueError(
            f"the LoRA at {lora} does not say what it was trained on: give that as the model, and it as lora"
        )
    return base


def write_record(folder: Path, prior: Prior | None, offset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write `folder`/onbrand/{prior.safetensors, config.json}; the record as it stands there, empty for plain weights.

    `offset`: as `checked` takes it; the prior's fingerprint is added."""
    beside = folder / "onbrand"
    record = {} if offset is None else checked(offset, "offset")
    if prior is not None:
        record = {**record, "prior": prior.fingerprint} if record else record
        beside.mkdir(parents=True, exist_ok=True)
        prior.save(beside / "prior.safetensors")
    if record:
        beside.mkdir(parents=True, exist_ok=True)
        (beside / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    else:
        (beside / "config.json").unlink(missing_ok=True)
    return record


def offset_config(folder: str | Path) -> dict[str, Any] | None:
    """How the weights in `folder` (a model or run folder) were offset-trained (KEYS); None for plain weights."""
    file = model_folder(folder) / "onbrand" / "config.json"
    return checked(json.loads(file.read_text()), str(file)) if file.is_file() else None


def offset_of(pipe: StableDiffusionPipeline) -> dict[str, Any] | None:
    """How the weights of `pipe` were offset-trained, by the folder or the LoRA it was loaded from; None: plainly, or
    it was loaded from neither."""
    origin = pipe.config.get("_name_or_path")
    if origin and Path(origin).is_file() and Path(origin).suffix == ".safetensors":
        return lora_metadata(origin)[1].get("offset")
    return offset_config(origin) if origin and Path(origin).is_dir() else None
