"""From a folder on disk to what its report says: whatever of a demo, run, brand or pictures folder is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onbrand.report import figures
from onbrand.report.files import folders, read_json, read_lines
from onbrand.report.page import HEADLINES, Finding, Kind, Page, Row, Thumb, picture
from onbrand.report.rows import count, ends, numbers, properties, read_rows, strips

SHEET = 720
"""Width, pixels, that validation sheets are scaled down to: their captions stay legible."""


def read(folder: str | Path) -> Page:
    """Everything the folder holds, as a `Page`.

    `folder` is a demo (`brand/`, `runs/<name>/`, `pictures/<row>/`, optionally `demo.json`), a run (`log.jsonl`), a
    brand (`fit.json`, `leak.json`, `means/`) or a pictures folder (`manifest.jsonl`, `check.json`, `trace/`). A run's
    brand is looked for under the path its run.json names. `demo.json` may hold `title`, `lead`, `notes`, `commands`,
    `numbers` (names of scores), `before`, `after`, `real` (names of rows) and `rows`: a list of {name, caption,
    sentence}, in the order to be shown. Raises ValueError where there is nothing to show.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"a report is read from a folder that exists, got {folder}; generate or train into it first")
    plan = read_json(folder / "demo.json")
    runs = {folder.resolve().name: folder} if (folder / "log.jsonl").exists() else folders(folder / "runs")
    brand = folder if (folder / "fit.json").exists() else folder / "brand"
    if not brand.is_dir():
        named = [Path(prior) for run in (*runs.values(), folder) if (prior := read_json(run / "run.json").get("prior"))]
        brand = next((path for path in named if path.is_dir()), brand)
    made = {folder.resolve().name: folder} if (folder / "manifest.jsonl").exists() else folders(folder / "pictures")

    rows, columns, ending = read_rows(made, plan)
    before, after = ends(rows, plan)
    page = Page(
        title=plan.get("title", f"onbrand: {folder.resolve().name}"),
        lead=plan.get("lead") or _lead(brand, runs, rows),
        columns=columns,
        ending=ending,
        rows=tuple(rows),
        before=before,
        after=after,
        numbers=numbers(rows, before, after, plan.get("numbers", HEADLINES[:3])),
        strips=strips(made, rows),
        curves=_curves(runs, plan),
        validation=_validation(runs),
        properties=properties(rows, made),
        notes=tuple(plan.get("notes", ())),
        sizes={"marks": any(thumb.failed for row in rows for thumb in row.pictures), "count": count(rows)},
        **_brand(brand),
    )
    page = replace(page, **_again(plan, brand, runs, made))
    if page.empty:
        raise ValueError(
            f"{folder} holds nothing to report: expected fit.json, log.jsonl or manifest.jsonl in it, or the folders "
            "brand/, runs/ or pictures/ (what fit, train and generate write)"
        )
    return page


def _lead(brand: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> str:
    """What there is, in numbers, for a page whose makers said nothing."""
    parts = []
    if fit := read_json(brand / "fit.json"):
        parts.append(f"{fit['used']:,} photos fitted")
    for name, run in runs.items():
        if lines := read_lines(run / "log.jsonl"):
            parts.append(
                f"{name}: {lines[-1]['step']:,} training steps, {_hours(sum(one['seconds'] for one in lines))}"
            )
    parts += [f"{row.caption}: {row.count:,} pictures checked" for row in rows if row.count]
    return " · ".join(parts)


def _hours(seconds: float) -> str:
    """A time as people say it."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def _curves(runs: Mapping[str, Path], plan: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Loss outside and inside the window, and on held-out pictures, a line a run; of more than are told apart, none."""
    if len(runs) > len(figures.COLOURS):
        return ()
    words = plan.get("runs", {})
    logs = {words.get(name, name): read_lines(run / "log.jsonl") for name, run in runs.items()}
    inside = "Inside the window, where the start is in the noise: how well the network uses it."
    outside = "Outside the window: the rest of the way, where plain training learns."
    if len(logs) > 1:
        outside += " Each offset and gain has its own target: compare the courses, not the heights."
    drawn = [
        (outside, figures.curves(logs, "loss_outside", "loss outside")),
        (inside, figures.curves(logs, "loss_inside", "loss inside")),
    ]
    drawn = [pair for pair in drawn if pair[1]] or [("Loss.", figures.curves(logs, "loss", "loss"))]
    unseen = "Held-out pictures, the same noise each time: where it rises, the network learns the photos by heart."
    drawn.append((unseen, figures.curves(logs, "held", "loss, held out")))
    return tuple(pair for pair in drawn if pair[1])


def _validation(runs: Mapping[str, Path]) -> tuple[Thumb, ...]:
    """The first and the last validation picture of each run."""
    thumbs = []
    for name, run in runs.items():
        files = sorted((run / "validation").glob("*.png"))
        for file in dict.fromkeys([*files[:1], *files[-1:]]):
            step = file.stem.removeprefix("step-").lstrip("0") or "0"
            alt = f"validation pictures of {name} at step {step}"
            thumbs.append(picture(file, alt, SHEET, caption=f"{name}, step {step}"))
    return tuple(thumbs)


def _brand(brand: Path) -> dict[str, Any]:
    """What was fitted and what the diagnosis says: fields of Page."""
    fit, leak = read_json(brand / "fit.json"), read_json(brand / "leak.json")
    leaks = leak.get("classes", {})
    kinds = []
    for name, entry in fit.get("classes", {}).items():
        file = brand / "means" / f"{entry.get('file', name)}.png"
        mean = picture(file, f"Mean of the class {name}") if file.exists() else None
        facts = []
        if name in leaks:
            facts.append(("stands out at first step", f"{leaks[name]['sigma']:.1f} sigma"))
            facts.append(("components worth using", str(leaks[name]["k_worth"])))
        if entry.get("r2"):
            facts.append(("told by the words (R²)", f"{entry['r2']:.2f}"))
        kinds.append(Kind(name, entry["count"], mean, tuple(facts)))
    height, width = fit.get("resolution", (0, 0))
    said = ""
    if fit:
        said = f"{fit['used']:,} photos at {width} × {height}, encoded by the autoencoder of {fit['model']}; "
        said += f"a mean and {fit['k']} components for each kind of picture."
    found = (
        Finding(
            e["code"],
            e["title"][:1].upper() + e["title"][1:],
            e["sentence"],
            e.get("remedy", ""),
            e["level"],
            e.get("class", ""),
        )
        for e in leak.get("findings", ())
    )
    return {
        "kinds": tuple(kinds), "fitted": said, "findings": tuple(found), "modes": figures.modes(leaks),
        "refused": tuple((Path(e["file"]).name, e["reason"]) for e in fit.get("refused", ())),
    }  # fmt: skip


def _again(plan: Mapping[str, Any], brand: Path, runs: Mapping[str, Path], made: Mapping[str, Path]) -> dict[str, Any]:
    """The commands that made all this, versions and fingerprints: fields of Page."""
    files = [brand / "fit.json", brand / "leak.json", *(run / "run.json" for run in runs.values())]
    files += [path / name for path in made.values() for name in ("run.json", "check.json")]
    parts = [read_json(file) for file in files]
    commands = plan.get("commands") or [part["command"] for part in parts if part.get("command")]
    facts: dict[str, str] = {}
    for part in parts:
        facts |= {name: str(value) for name, value in part.get("versions", {}).items()}
        facts |= {f"{name} fingerprint": str(value)[:16] for name, value in part.get("fingerprints", {}).items()}
    return {"commands": tuple(dict.fromkeys(commands)), "facts": tuple(facts.items())}
