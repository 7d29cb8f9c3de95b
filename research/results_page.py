"""From what `onbrand compare` wrote to docs/research, and from there into words: no number is written by hand."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from onbrand.comparison.tables import figure_of

DOCS = Path(__file__).parents[1] / "docs"
DATA, IMAGES = "research", "images"
"""Folders of DOCS."""
DIFFERENCES = "differences.json"
INTERVAL = re.compile(r"([+-]?[\d.]+) \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)")


def publish(compared: Path, name: str, figures: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Copy a comparison's scores to docs/research/`name`.json, its paired differences to differences.json.

    Args:
        compared: the folder that `compare` wrote.
        name: of the file.
        figures: of its folder figures/ -> name under docs/images; others are not published.

    Returns:
        Method -> score -> value, low, high, n.
    """
    methods: dict[str, Any] = json.loads((compared / "compare.json").read_text())["methods"]
    (DOCS / DATA / f"{name}.json").write_text(json.dumps(methods, indent=1) + "\n")
    file = DOCS / DATA / DIFFERENCES
    pairs = json.loads(file.read_text()) if file.exists() else {}
    pairs[name] = differences((compared / "compare.md").read_text())
    file.write_text(json.dumps(dict(sorted(pairs.items())), indent=1) + "\n")
    for figure, published in (figures or {}).items():
        shutil.copy2(compared / "figures" / figure, DOCS / IMAGES / published)
    return methods


def before_after(compared: Path, shown: Mapping[str, str], path: Path, columns: int = 6, lines: int = 2) -> None:
    """README's image: two methods side by side, equal prompts and seeds, the first requests, not chosen.

    compared: the folder that `compare` wrote; shown: method -> words.
    """
    rows = json.loads((compared / "compare.json").read_text())["rows"]
    font, head, gap, side = ImageFont.load_default(22), 44, 32, 128
    sheet = Image.new("RGB", (2 * columns * side + gap, head + lines * side), "white")
    for panel, (name, words) in enumerate(shown.items()):
        left = panel * (columns * side + gap)
        ImageDraw.Draw(sheet).text((left + 4, 8), words, "black", font)
        for i in range(columns * lines):
            image = Image.open(compared / rows[name]["images"] / f"{i:05d}.png")
            sheet.paste(image, (left + i % columns * side, head + i // columns * side))
    ImageDraw.Draw(sheet).line((columns * side + gap // 2, 0, columns * side + gap // 2, sheet.height), "gray")
    sheet.save(path, optimize=True)


def differences(markdown: str) -> dict[str, Any]:
    """Question -> {first, others: {method: {score: value, low, high}}}: compare.md's tables `| first less | ...`."""
    questions: dict[str, Any] = {}
    title, columns, others = "", [], None
    for line in markdown.splitlines():
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if head := re.match(r"\| (\S+) less \| (.*) \|$", line):
            columns, others = head[2].split(" | "), {}
            questions[title] = {"first": head[1], "others": others}
        elif others is not None and line.startswith("| "):
            method, *cells = line.strip("| ").split(" | ")
            numbers = [INTERVAL.fullmatch(cell.strip()) for cell in cells]
            others[method] = {
                column: dict(zip(("value", "low", "high"), map(float, number.groups()), strict=True))
                for column, number in zip(columns, numbers, strict=True)
                if number
            }
        elif not line.startswith("|---"):
            others = None
    return questions


def filled(words: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    """The words with every `{method|score}` as the number that was measured.

    `{method|score|}`: with its interval; `{method|score|%}`: in whole percent; `{method|score|1}`: to one decimal; a
    method `A less B`: with a sign.
    """

    def number(placeholder: re.Match[str]) -> str:
        method, score, form = placeholder.groups()
        entry = table[method][score]
        if form == "|%":
            return f"{int(100 * entry['value'] + 0.5 + 1e-9)} %"  # .575 is 58 %, whatever its last bit
        if form == "|1":
            return f"{entry['value']:.1f}"
        return figure_of(entry if form else {"value": entry["value"]}, sign="+" if " less " in method else "")

    return re.sub(r"\{([^{}|]+)\|([^{}|]+)(\|[%1]?)?\}", number, words)
