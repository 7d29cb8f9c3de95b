"""Methods side by side: from their check.json to one table, its Markdown, and the figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onbrand.data.images import open_image
from onbrand.evaluation import statistics
from onbrand.evaluation.properties import ALL, MEASURES, PROPERTIES, WORDS
from onbrand.io import plain, read_json, whole_file
from onbrand.reporting.figures import COLOURS, DASHES, LINE, label_of

Table = dict[str, dict[str, dict[str, float]]]
"""Method -> score -> value, low, high, n."""
TRUTH = "share of ground truth"
"""CLIP similarity over the real images' own."""
JUDGED = tuple(one.name for one in PROPERTIES if one.numbers)
"""Columns of the properties that ranges decide."""
OVERALL = (
    "clip",
    TRUTH,
    *(one.name for one in PROPERTIES if not one.numbers),
    "all",
    *(one.name for one in MEASURES if one.name != "clip"),
)
"""Columns of the other scores: text and all stand beside the measures."""
SHOWN = 12
"""Images of a row in a figure: the first ones."""


REFERENCE = {"real": "real images, held out", "autoencoder": "the same, through the autoencoder"}
"""Rows that no model made."""


@dataclass(frozen=True)
class Line:
    """One method of a comparison, as a table shows it."""

    name: str
    training: str
    start: str
    folder: Path
    """With its images and check.json."""
    requests: str = ""
    """Name of its set of requests: the methods of one set share prompts and seeds."""
    nats: float | None = None
    """The mismatch that the diagnosis predicts, in nats an image; None: not computed."""


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """Every score of a folder's check.json: all, properties, measures, and attributes as `text: kind`.

    Returns:
        Score -> value, low, high, n.
    """
    content = read_json(folder / "check.json")
    entries = {"all": content["all"], **content["properties"], **content["measures"]}
    entries |= {f"text: {name}": entry for name, entry in content["attributes"].items()}
    return {
        name: {
            "value": e.get("rate", e.get("value")), "low": e["low"], "high": e["high"],
            "n": e.get("n", content["count"]),
        }
        for name, e in entries.items()
    }  # fmt: skip


def table_of(lines: Iterable[Line], reference: Mapping[str, Path]) -> Table:
    """Collect the scores of everything that was checked.

    Args:
        lines: the methods.
        reference: a name of REFERENCE -> its folder.
    """
    table = {name: scores(folder) for name, folder in reference.items() if (folder / "check.json").exists()}
    table |= {line.name: scores(line.folder) for line in lines if (line.folder / "check.json").exists()}
    truth = table.get("real", {}).get("clip", {}).get("value")
    for row in table.values():
        if truth and "clip" in row:
            row[TRUTH] = {key: row["clip"][key] / (1 if key == "n" else truth) for key in row["clip"]}
    return table


def passed(folder: Path, score: str) -> Tensor:
    """`(B,)` 1 if an image passes the property ("all": every one), else 0, in the order of the requests."""
    entries = read_json(folder / "check.json")["images"]
    failures = [entry["failed"] for entry in sorted(entries, key=lambda entry: entry["file"])]
    good = [not names if score == "all" else score not in names for names in failures]
    return torch.tensor(good).double()


def write(
    figures: Path, table: Table, lines: Sequence[Line], questions: Mapping[str, Sequence[str]],
    series: Mapping[str, Mapping[str, Mapping[float, str]]],
) -> str:  # fmt: skip
    """Write compare.md, and draw its figures.

    Args:
        figures: folder that the figures are drawn into.
        table: the scores.
        lines: the methods.
        questions: title -> names of methods, the first of which is compared with each of the others.
        series: label -> words of a line -> number -> name of the method, as `curves` draws it.

    Returns:
        The Markdown: every method by set of requests, every question, every series.
    """
    rates = [score for score in ("text", "background", "all") if any(score in row for row in table.values())]
    attributes = sorted({score for row in table.values() for score in row if score.startswith("text: ")})
    parts = ["# Methods side by side", legend([line.folder for line in lines])]
    for name in dict.fromkeys(line.requests for line in lines):
        own = [line for line in lines if line.requests == name and line.name in table]
        parts.append(f"## Every method, requests *{cell(name)}*" if name else "## Every method")
        parts.append(markdown(table, own, OVERALL))
        parts.append(markdown(table, own, JUDGED))
        parts.append(markdown(table, own, attributes, bare=True) if attributes else "")
    for number, (title, group) in enumerate(questions.items(), 1):
        by_name = {line.name: line for line in lines if line.name in table}
        names = [name for name in group if name in by_name]
        parts += [f"## {cell(title)}", differences(lines, group, rates)]
        if names:
            grid([by_name[name].folder for name in names], figures / f"question-{number}.webp")
            parts.append(
                f"From the top: {'; '.join(map(cell, names))}.\n\n![{cell(title)}](figures/question-{number}.webp)"
            )
    for label, curve in series.items():
        file = figures / (re.sub(r"\W+", "-", label)[:80] + ".png")
        curves(table, curve, [*rates, "diversity"], label, file)
        parts += [f"## By {cell(label)}", f"![By {cell(label)}](figures/{file.name})"]
    if len({round(line.nats, 1) for line in lines if line.nats is not None}) > 1:
        scatter(table, lines, "background", figures / "mismatch.png")
        parts += ["## Predicted, and measured", "![Mismatch and background](figures/mismatch.png)"]
    return "\n\n".join(filter(None, parts)) + "\n"


def legend(folders: Sequence[Path]) -> str:
    """What each score is, in the words of the folders' checks, as a Markdown list; "" if nothing was checked."""
    entries: dict[str, dict[str, str]] = {}
    for file in filter(Path.exists, (folder / "check.json" for folder in folders)):
        content = read_json(file)
        entries = content["properties"] | content["measures"] | entries
    if not entries:
        return ""
    entries = {"all": {"title": ALL[0], "rule": ALL[1]}} | {name: entries[name] for name in WORDS if name in entries}
    lines = [f"- *{name}*: {entry['title']}. {entry['rule']}" for name, entry in entries.items()]
    return "Rates and means with 95 % bootstrap intervals over images.\n\n" + "\n".join(lines)


def page_plan(lines: Sequence[Line], real: Path | None) -> dict[str, Any]:
    """demo.json: the page shows the methods of the first set; plain training from noise and the last one stand out.

    Args:
        lines: the methods.
        real: folder of the real images; None: the page shows none.
    """
    shown = [line for line in lines if not line.requests and (line.folder / "check.json").exists()]
    rows = [{"name": line.folder.name, "caption": f"{line.training}, from {line.start}"} for line in shown]
    if real:
        rows.append({"name": real.name, "caption": "Real images of the brand"})
    before = next((line for line in shown if line.name == "plain/noise"), shown[0] if shown else None)
    return {
        "title": "Methods side by side",
        "lead": f"{len(shown)} methods on the same photos, prompts and seeds; compare.md has every number.",
        "rows": rows,
        "numbers": ["background", "text", "all"],
        "before": before.folder.name if before else "",
        "after": shown[-1].folder.name if shown else "",
        "real": real.name if real else "",
    }


def figure_of(e: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """`.812 (.780 to .840)`, for a table: e's value, low and high, with `digits` decimals and a format's `sign`."""

    def short(x: float) -> str:
        return f"{x:{sign}.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:{sign}.{digits}f}"

    if e.get("low") is None or e["value"] != e["value"]:
        return short(e["value"])
    return f"{short(e['value'])} ({short(e['low'])} to {short(e['high'])})"


def markdown(table: Table, lines: Sequence[Line], columns: Sequence[str], bare: bool = False) -> str:
    """Write one Markdown table.

    Args:
        table: the scores.
        lines: the methods, one row each, after the real images.
        columns: scores; those that no row has are left out.
        bare: without intervals.
    """
    shown = [line for line in lines if line.name in table]
    columns = [c for c in columns if any(c in table[line.name] for line in shown)]
    out = [f"| training | start | {' | '.join(cell(c.removeprefix('text: ')) for c in columns)} |"]
    out.append("|---|---|" + "---|" * len(columns))
    rows = [(name, title, "") for name, title in REFERENCE.items() if name in table]
    for name, training, start in (*rows, *((line.name, line.training, line.start) for line in shown)):
        cells = [table[name].get(c) for c in columns]
        words = ["" if e is None else figure_of({"value": e["value"]} if bare else e) for e in cells]
        out.append(f"| {cell(training)} | {cell(start)} | {' | '.join(words)} |")
    return "\n".join(out)


def cell(text: str) -> str:
    """A name as Markdown shows it as it is, in a table too."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", plain(text)).replace("<", "&lt;")


def differences(lines: Sequence[Line], names: Sequence[str], rates: Sequence[str]) -> str:
    """Write, as Markdown, the first method less each of the others.

    Images of equal prompts and seeds are paired.

    Args:
        lines: the methods.
        names: those to compare; methods that were not checked, or of another set of requests, are left out.
        rates: properties, or "all".

    Returns:
        The table; "" without a pair.
    """
    by_name = {line.name: line for line in lines if (line.folder / "check.json").exists()}
    first = by_name.get(names[0])
    out = [f"| {cell(names[0])} less | {' | '.join(rates)} |", "|---|" + "---|" * len(rates)]
    for name in names[1:]:
        other = by_name.get(name)
        if first is None or other is None or other.requests != first.requests:
            continue
        pairs = [(passed(first.folder, score), passed(other.folder, score)) for score in rates]
        cells = [figure_of(vars(statistics.difference(*pair)), sign="+") for pair in pairs]
        out.append(f"| {cell(name)} | {' | '.join(cells)} |")
    return "\n".join(out) if len(out) > 2 else ""


def grid(folders: Sequence[Path], path: Path, columns: int = SHOWN) -> None:
    """Save rows of images, the first `columns` of each folder. `path` ends in .webp: a tenth of a PNG."""
    rows = []
    for folder in folders:
        files = sorted([*folder.glob("[0-9]*.png"), *folder.glob("00000/*.png")])[:columns]
        rows.append(np.concatenate([np.asarray(open_image(file, smallest=1)) for file in files], 1))
    width = min(row.shape[1] for row in rows)
    with whole_file(path) as draft:
        Image.fromarray(np.concatenate([row[:, :width] for row in rows])).save(draft, "WEBP", quality=90, method=6)


def curves(
    table: Table, series: Mapping[str, Mapping[float, str]], names: Sequence[str], label: str, path: Path,
) -> None:  # fmt: skip
    """Draw scores by a number, one panel a score; the real images are a dotted line.

    Args:
        table: the scores.
        series: words of a line -> number -> name of the method.
        names: the scores to draw.
        label: what the number is.
        path: the figure's file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(names) + 1, 3.1), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, score in zip(axes, names, strict=True):
        for i, (words, points) in enumerate(series.items()):
            entries = {x: table[m][score] for x, m in sorted(points.items()) if score in table.get(m, {})}
            if not entries:
                continue
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            numbers = list(entries)
            value, low, high = ([e[key] for e in entries.values()] for key in ("value", "low", "high"))
            axis.plot(
                numbers,
                value,
                marker="o",
                markersize=3.5,
                color=colour,
                linestyle=dash,
                linewidth=1.6,
                label=label_of(words),
            )
            axis.fill_between(numbers, low, high, color=colour, alpha=0.12, linewidth=0)
        if score in table.get("real", {}):
            axis.axhline(table["real"][score]["value"], color="0.4", linewidth=1, linestyle=":")
        axis.set(title=label_of(score), xlabel=label_of(label))
        axis.set_ylim(0, None if score in ("diversity", "frechet") else 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=LINE, linewidth=0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    with whole_file(path) as draft:
        figure.savefig(draft, format="png", dpi=130)


def scatter(table: Table, lines: Sequence[Line], score: str, path: Path) -> None:
    """Draw the measured score against the mismatch that the diagnosis predicts, a point a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.add_subplot()
    rows = [line for line in lines if line.nats is not None and score in table.get(line.name, {})]
    for i, start in enumerate(dict.fromkeys(line.start.partition(",")[0] for line in rows)):
        own = [line for line in rows if line.start.partition(",")[0] == start]
        axis.plot([max(line.nats or 0, 0.1) for line in own], [table[line.name][score]["value"] for line in own],
                  "os^Dv*"[i % 6], color=COLOURS[i % len(COLOURS)], markersize=6, linestyle="", alpha=0.8,
                  label=label_of(f"from {start}"))  # fmt: skip
    axis.set(xscale="log", xlabel="mismatch at the first step, nats an image (.1: none)",
             ylabel=f"measured: {score}", ylim=(-0.03, 1.03))  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=LINE, linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with whole_file(path) as draft:
        figure.savefig(draft, format="png", dpi=130)
