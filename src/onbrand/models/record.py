"""How weights were offset-trained, kept beside them in onbrand/config.json: what a start of theirs must agree with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

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
    inner = folder / "model"
    return inner if not (folder / "model_index.json").exists() and (inner / "model_index.json").exists() else folder


def offset_config(folder: str | Path) -> dict[str, Any] | None:
    """How the weights in `folder` (a model or run folder) were offset-trained (KEYS); None for plain weights."""
    file = model_folder(folder) / "onbrand" / "config.json"
    return checked(json.loads(file.read_text()), str(file)) if file.is_file() else None


def offset_of(pipe: StableDiffusionPipeline) -> dict[str, Any] | None:
    """`offset_config` of the folder that `pipe` was loaded from; None if it was not loaded from a folder."""
    origin = pipe.config.get("_name_or_path")
    return offset_config(origin) if origin and Path(origin).is_dir() else None
