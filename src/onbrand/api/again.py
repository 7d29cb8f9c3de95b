"""What lets a result be made again, written beside it: the command, the versions, the fingerprints."""

from __future__ import annotations

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

    `given` maps parameters (and, by their dotted flags, fields of its settings) to values.
    """
    parameters = inspect.signature(verb).parameters
    first = next(iter(parameters))
    words = ["onbrand", verb.__name__] + ([str(given[first])] if given.get(first) is not None else [])
    for name, value in given.items():
        if name == first or value is None or (name in parameters and value == parameters[name].default):
            continue
        said = str(list(value)) if isinstance(value, tuple) else str(value)
        words += [f"--{name}"] if value is True else [f"--{name}", said]
    return shlex.join(words)


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
