"""A page of docs/ from what `onbrand compare` wrote and the words beside this script; no number is written by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onbrand.comparison.tables import figure_of

DOCS = Path(__file__).parents[1] / "docs"


def publish(compared: Path, name: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """docs/`name`.md, `name`.json and images/`name`-*, by `name`_words.md; returns the table.

    compared: the folder of a comparison; more: other rows that the words name."""
    told = json.loads((compared / "compare.json").read_text())
    (DOCS / f"{name}.json").write_text(json.dumps(told["methods"], indent=1) + "\n")
    text = (compared / "compare.md").read_text().split("\n", 1)[1]
    for figure in sorted((compared / "figures").iterdir()):
        if f"(figures/{figure.name})" in text:  # others are of another page's comparison in this folder
            shutil.copy2(figure, DOCS / "images" / f"{name}-{figure.name}")
            text = text.replace(f"(figures/{figure.name})", f"(images/{name}-{figure.name})")
    file = Path(__file__).with_name(f"{name.replace('-', '_')}_words.md")
    words = filled(file.read_text().rstrip(), told["methods"] | dict(more or {}))
    (DOCS / f"{name}.md").write_text(f"{words}\n{text}")
    return told["methods"]


def filled(words: str, table: dict[str, Any]) -> str:
    """The words with every `{method|score}` as the number that was measured, `{method|score|}` with its interval."""

    def number(found: re.Match[str]) -> str:
        method, score, whole = found.groups()
        entry = table[method][score]
        return figure_of(entry if whole else {"value": entry["value"]})

    return re.sub(r"\{([^{}|]+)\|([^{}|]+)(\|)?\}", number, words)
