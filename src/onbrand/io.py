"""What lets a result be made again, written beside it: the command, the versions, the fingerprints."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def command(verb: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """The command line that calls `verb` with these arguments; those that are its defaults are left out.

    given: every argument by its parameter's name, as `locals()` has them at the verb's first line.
    """
    words = ["onbrand", verb.__name__]
    for place, (name, parameter) in enumerate(inspect.signature(verb).parameters.items()):
        value = given[name]
        if dataclasses.is_dataclass(value):
            words += _flags(value, type(value)(), "")  # type: ignore[misc]
        elif value != parameter.default:
            switch = parameter.default is False
            words += [_said(value)] if place == 0 else [f"--{name}"] if switch else [f"--{name}", _said(value)]
    return shlex.join(words)


def _flags(settings: Any, usual: Any, prefix: str) -> list[str]:
    """The flags of the settings that are not the usual ones, by their dotted names."""
    words: list[str] = []
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(usual, field.name)
        if dataclasses.is_dataclass(value):
            words += _flags(value, default, f"{prefix}{field.name}.")
        elif value != default:
            words += [f"--{prefix}{field.name}", _said(value)]
    return words


def _said(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    named = {name: version(name) for name in ("onbrand", "torch", "diffusers", "transformers")}
    return named | {"python": platform.python_version()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON under another name, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
