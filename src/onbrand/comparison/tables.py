"""Methods side by side: from their check.json to one table, its Markdown, and the figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onbrand.evaluation import statistics
from onbrand.reporting.figures import COLOURS, DASHES, LINE

Table = dict[str, dict[str, dict[str, float]]]
"""Method -> score -> value, low, high, n."""
PROPERTIES = ("ground", "centring", "cropping", "fill", "light", "pose", "kind")
MEASURES = ("clip", "share of ground truth", "text", "all", "stray", "diversity", "frechet", "region", "region_near")
SHOWN = 12
"""Pictures of a row in a figure: the first ones."""


HELD = {"real": "real pictures, held out", "autoencoder": "the same, through the autoencoder"}
"""Rows that no model made."""


@dataclass(frozen=True)
class Line:
    """One method of a comparison, as a table shows it."""

    name: str
    training: str
    start: str
    folder: Path
    """With its pictures and check.json."""
    requests: str = ""
    """Name of its set of requests: rows of one set are made from equal prompts and seeds."""
    nats: float | None = None
    """The mismatch that the diagnosis tells beforehand, per picture."""


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """Everything that a check found: all, properties, measures, and attributes as `text: kind`."""
    checked = json.loads((folder / "check.json").read_text())
    told = {"all": checked["all"], **checked["properties"], **checked["measures"]}
    told |= {f"text: {name}": entry for name, entry in checked["attributes"].items()}
    return {
        name: {
            "value": e.get("share", e.get("value")), "low": e["low"], "high": e["high"],
            "n": e.get("of", checked["count"]),
        }
        for name, e in told.items()
    }  # fmt: skip


def table_of(lines: Iterable[Line], held: Mapping[str, Path]) -> Table:
    """The scores of every method that was checked, and of held-out pictures by the names of HELD."""
    table = {name: scores(folder) for name, folder in held.items() if (folder / "check.json").exists()}
    table |= {line.name: scores(line.folder) for line in lines if (line.folder / "check.json").exists()}
    truth = table.get("real", {}).get("clip", {}).get("value")
    for told in table.values():
        if truth and "clip" in told:
            told["share of ground truth"] = {
                key: told["clip"][key] / (1 if key == "n" else truth) for key in told["clip"]
            }
    return table


def passed(folder: Path, score: str) -> Tensor:
    """1 where a picture passes ("all": everything), 0 where it fails, `(B,)` in the order of the requests."""
    entries = json.loads((folder / "check.json").read_text())["pictures"]
    told = [entry["failed"] for entry in sorted(entries, key=lambda entry: entry["file"])]
    good = [not failed if score == "all" else score not in failed for failed in told]
    return torch.tensor(good).double()


def write(
    figures: Path, table: Table, lines: Sequence[Line], questions: Mapping[str, Sequence[str]],
    series: Mapping[str, Mapping[str, Mapping[float, str]]],
) -> str:  # fmt: skip
    """compare.md: every method by set of requests, every question, every number of steps; draws into `figures`."""
    judged = [score for score in ("text", "ground", "all") if any(score in told for told in table.values())]
    attributes = sorted({score for told in table.values() for score in told if score.startswith("text: ")})
    parts = ["# Methods side by side", legend([line.folder for line in lines])]
    for name in dict.fromkeys(line.requests for line in lines):
        own = [line for line in lines if line.requests == name and line.name in table]
        parts.append(f"## Every method, requests *{name}*" if name else "## Every method")
        parts.append(markdown(table, own, MEASURES))
        parts.append(markdown(table, own, PROPERTIES))
        parts.append(markdown(table, own, attributes, bare=True) if attributes else "")
    for number, (title, group) in enumerate(questions.items(), 1):
        by_name = {line.name: line for line in lines if line.name in table}
        drawn = [name for name in group if name in by_name]
        parts += [f"## {title}", differences(lines, group, judged)]
        if drawn:
            grid([by_name[name].folder for name in drawn], figures / f"question-{number}.webp")
            parts.append(f"From the top: {'; '.join(drawn)}.\n\n![{title}](figures/question-{number}.webp)")
    for label, curve in series.items():
        file = figures / (re.sub(r"\W+", "-", label) + ".png")
        curves(table, curve, [*judged, "diversity"], label, file)
        parts += [f"## By {label}", f"![By {label}](figures/{file.name})"]
    if len({round(line.nats, 1) for line in lines if line.nats is not None}) > 1:
        scatter(table, lines, "ground", figures / "mismatch.png")
        parts += ["## Told before, measured after", "![Mismatch and ground](figures/mismatch.png)"]
    return "\n\n".join(filter(None, parts)) + "\n"


def legend(folders: Sequence[Path]) -> str:
    """What each score is, in the words of the checks, as a Markdown list."""
    told: dict[str, dict[str, str]] = {}
    for file in filter(Path.exists, (folder / "check.json" for folder in folders)):
        checked = json.loads(file.read_text())
        told = told | {k: e for k, e in (checked["properties"] | checked["measures"]).items() if k not in told}
    if not told:
        return ""
    told = {"all": {"title": "pass every check", "rule": "Every check below, down to the text."}} | told
    lines = [f"- *{name}*: {entry['title']}. {entry['rule']}" for name, entry in told.items()]
    return "Shares and means with 95 % bootstrap intervals over pictures.\n\n" + "\n".join(lines)


def page_plan(lines: Sequence[Line], real: Path | None) -> dict[str, Any]:
    """demo.json: what the page shows, the methods of the first set; the usual way and the last one are set apart."""
    shown = [line for line in lines if not line.requests and (line.folder / "check.json").exists()]
    rows = [{"name": line.folder.name, "caption": f"{line.training}, from {line.start}"} for line in shown]
    if real:
        rows.append({"name": real.name, "caption": "Real pictures of the brand"})
    before = next((line for line in shown if line.name == "plain/noise"), shown[0] if shown else None)
    return {
        "title": "Methods side by side",
        "lead": f"{len(shown)} methods on the same photos, prompts and seeds; compare.md has every number.",
        "rows": rows,
        "numbers": ["ground", "text", "all"],
        "before": before.folder.name if before else "",
        "after": shown[-1].folder.name if shown else "",
        "real": real.name if real else "",
    }


def figure_of(e: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """`.812 (.780 to .840)`, for a table."""

    def short(x: float) -> str:
        return f"{x:{sign}.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:{sign}.{digits}f}"

    if e.get("low") is None or e["value"] != e["value"]:
        return short(e["value"])
    return f"{short(e['value'])} ({short(e['low'])} to {short(e['high'])})"


def markdown(table: Table, lines: Sequence[Line], columns: Sequence[str], bare: bool = False) -> str:
    """One Markdown table of `lines`, the real pictures first; columns that no row has are left out."""
    shown = [line for line in lines if line.name in table]
    columns = [c for c in columns if any(c in table[line.name] for line in shown)]
    out = [f"| training | start | {' | '.join(c.removeprefix('text: ') for c in columns)} |"]
    out.append("|---|---|" + "---|" * len(columns))
    rows = [(name, words, "") for name, words in HELD.items() if name in table]
    for name, training, start in (*rows, *((line.name, line.training, line.start) for line in shown)):
        cells = [table[name].get(c) for c in columns]
        said = ["" if e is None else figure_of({"value": e["value"]} if bare else e) for e in cells]
        out.append(f"| {training} | {start} | {' | '.join(said)} |")
    return "\n".join(out)


def differences(lines: Sequence[Line], asked: Sequence[str], judged: Sequence[str]) -> str:
    """The first method of `asked` less each of the others, pictures of equal prompts and seeds paired, as Markdown."""
    by_name = {line.name: line for line in lines if (line.folder / "check.json").exists()}
    first = by_name.get(asked[0])
    out = [f"| {asked[0]} less | {' | '.join(judged)} |", "|---|" + "---|" * len(judged)]
    for name in asked[1:]:
        other = by_name.get(name)
        if first is None or other is None or other.requests != first.requests:
            continue
        pairs = [(passed(first.folder, score), passed(other.folder, score)) for score in judged]
        cells = [figure_of(vars(statistics.difference(*pair)), sign="+") for pair in pairs]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(out) if len(out) > 2 else ""


def grid(folders: Sequence[Path], path: Path, columns: int = SHOWN) -> None:
    """Rows of pictures, the first `columns` of each folder: not chosen. `path` ends in .webp: a tenth of a PNG."""
    rows = []
    for folder in folders:
        files = sorted(folder.glob("[0-9]*.png"))[:columns]
        rows.append(np.concatenate([np.asarray(Image.open(file).convert("RGB")) for file in files], 1))
    width = min(row.shape[1] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([row[:, :width] for row in rows])).save(path, quality=90, method=6)


def curves(
    table: Table, series: Mapping[str, Mapping[float, str]], judged: Sequence[str], label: str, path: Path,
) -> None:  # fmt: skip
    """Scores by a number: series maps a line's words to {number: method}; dotted: the real pictures."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(3.4 * len(judged) + 1, 3.1), layout="constrained")
    axes = drawn.subplots(1, len(judged), squeeze=False)[0]
    for axis, score in zip(axes, judged, strict=True):
        for i, (words, points) in enumerate(series.items()):
            known = {x: table[m][score] for x, m in sorted(points.items()) if score in table.get(m, {})}
            if not known:
                continue
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            axis.plot(list(known), [e["value"] for e in known.values()], marker="o", markersize=3.5, color=colour,
                      linestyle=dash, linewidth=1.6, label=words)  # fmt: skip
            axis.fill_between(list(known), [e["low"] for e in known.values()], [e["high"] for e in known.values()],
                              color=colour, alpha=0.12, linewidth=0)  # fmt: skip
        if score in table.get("real", {}):
            axis.axhline(table["real"][score]["value"], color="0.4", linewidth=1, linestyle=":")
        axis.set(title=score, xlabel=label)
        axis.set_ylim(0, None if score in ("diversity", "frechet") else 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=LINE, linewidth=0.6)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130)


def scatter(table: Table, lines: Sequence[Line], score: str, path: Path) -> None:
    """The mismatch told before any sampling against what was measured, a point a method."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 3.6), layout="constrained")
    axis = drawn.add_subplot()
    known = [line for line in lines if line.nats is not None and score in table.get(line.name, {})]
    for i, start in enumerate(dict.fromkeys(line.start.partition(",")[0] for line in known)):
        own = [line for line in known if line.start.partition(",")[0] == start]
        axis.plot([max(line.nats or 0, 0.1) for line in own], [table[line.name][score]["value"] for line in own],
                  "os^Dv*"[i % 6], color=COLOURS[i % len(COLOURS)], markersize=6, linestyle="", alpha=0.8,
                  label=f"from {start}")  # fmt: skip
    axis.set(xscale="log", xlabel="mismatch at the first step, nats a picture (.1: none)",
             ylabel=f"measured: {score}", ylim=(-0.03, 1.03))  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color=LINE, linewidth=0.6)
    drawn.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130)
