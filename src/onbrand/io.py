"""What every room writes with: files and folders that appear whole or not at all, digests, versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends well, and is gone when it does not.

    durable: flushed to the disk before it is renamed, and its name after, so that a power cut leaves it whole too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        yield draft
        if durable:
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
        if durable and os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `path` when the block ends well."""
    draft = draft_of(path)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        discard(path)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """The name that this process writes `path` under until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def discard(folder: Path) -> None:
    """Remove a folder such that a kill in between leaves no half of it under its name."""
    if folder.exists():
        rubbish = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(rubbish, ignore_errors=True)
        os.replace(folder, rubbish)
        shutil.rmtree(rubbish)


SCHEMA = 2
"""Of every JSON file that a verb leaves. Files without a schema are of the first, which `upgrade` reads."""
RENAMED = {
    "ground": "background", "ground_near": "background_near", "ground_border": "background_border",
    "ground_share": "background_share", "ground_mean": "background_mean", "ground_spread": "background_spread",
    "ground_pure": "background_pure", "kind": "class", "kind_lead": "class_lead",
    "kind_likelihood": "class_likelihood", "kind_variety": "class_diversity", "stray": "out_of_distribution",
    "told": "descriptive", "learnt": "n_reference", "of": "n", "share": "rate", "pictures": "images",
}  # fmt: skip
"""Key of schema 1 -> of schema 2, in check.json, compare.json, reference.json, unseen.json and demo.json."""
AS_THEY_ARE = {"attributes", "classes", "methods", "rows"}
"""Keys whose own keys are names that somebody gave."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its schema's version, whole or not at all."""
    with whole_file(path) as draft:
        text = json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file by the present schema; {} without the file."""
    return upgrade(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file's lines; a last line that a kill cut off is passed over."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of schema 1 says by the keys of schema 2; what names its schema passes unchanged."""
    if "schema" in content:
        return dict(content)
    present = _renamed(content, True)
    if "findings" in present:  # leak.json
        for former, name in (("steps", "num_inference_steps"), ("first", "start_timestep")):
            if former in present:
                present[name] = present.pop(former)
    return {"schema": SCHEMA, **present}


def _renamed(value: Any, keys: bool) -> Any:
    """The value with its keys renamed (keys: unless these are names that somebody gave), and its lists of keys."""
    if isinstance(value, Mapping):
        return {
            RENAMED.get(name, name) if keys else name: _renamed(item, name not in AS_THEY_ARE)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [RENAMED.get(item, item) if isinstance(item, str) else _renamed(item, True) for item in value]
    return value


def digest(content: object) -> str:
    """sha256 in hex of bytes, or of what JSON makes of anything else."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    numbers = {name: version(name) for name in ("onbrand", "torch", "diffusers", "transformers")}
    return numbers | {"python": platform.python_version()}
