"""What the verbs wrote, as it lies on disk: JSON, lines of JSON, folders; nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def folders(path: Path) -> dict[str, Path]:
    """Sub-folders by name, in the order of their names."""
    return {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_dir()} if path.is_dir() else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file's lines; a last line cut off by a kill is passed over."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
