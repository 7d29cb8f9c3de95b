"""From a folder on disk to what its report says: of a demo, a run, a brand or images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onbrand.errors import OnbrandError
from onbrand.evaluation.properties import ALL, HEADLINES
from onbrand.io import check_links, inside, read_json, read_lines
from onbrand.reporting import figures
from onbrand.reporting.page import (
    ClassCard,
    Finding,
    Number,
    Page,
    Property,
    Row,
    Score,
    Strip,
    Thumb,
    image,
)

SHEET = 720
"""Width, pixels, that validation sheets are scaled down to: their captions stay legible."""
UNREAD = ("buckets", "latents", "locks", "model", "models", "priors", "state")
"""Folders of a run, a brand or a comparison that nothing is shown from."""
TRACED = re.compile(r"\d+-t\d+-x0\.png")
"""00-t951-x0.png: step 0, timestep 951."""


def read(folder: str | Path) -> Page:
    """Read everything that a folder holds.

    Args:
        folder: a run (`log.jsonl`), a brand (`fit.json`, `leak.json`, `means/`), images
            (`manifest.jsonl`, `check.json`, `trace/`), or a demo, which holds such folders (`brand/`, `runs/<name>/`,
            `images/<row>/`) and may hold `demo.json`: `title`, `lead`, `notes`, `commands`, `numbers` (names of
            scores), `before`, `after`, `real` (names of rows), and `rows`, a list of {name, caption, sentence} in the
            order of the page.

    Raises:
        OnbrandError: the folder does not exist, holds nothing to show, or names or links what lies outside of it:
            the page is passed on, and nobody may put other files into it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OnbrandError(
            "folder", f"a report is read from a folder that exists, got {folder}; generate or train into it first"
        )
    check_links(folder, UNREAD)
    plan = read_json(folder / "demo.json")
    runs = {folder.resolve().name: folder} if (folder / "log.jsonl").exists() else folders(folder / "runs")
    brand = folder if (folder / "fit.json").exists() else folder / "brand"
    images = {folder.resolve().name: folder} if (folder / "manifest.jsonl").exists() else folders(images_of(folder))

    rows, columns, ending = read_rows(images, plan)
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
        strips=strips(images, rows),
        curves=_curves(runs, plan),
        validation=_validation(runs),
        properties=properties(rows, images),
        notes=tuple(plan.get("notes", ())),
        sizes={"marks": any(thumb.failed for row in rows for thumb in row.images), "count": count(rows)},
        **_brand(brand),
    )
    page = replace(page, **_again(plan, brand, runs, images))
    if page.empty:
        raise OnbrandError(
            "folder",
            f"{folder} holds nothing to report: expected fit.json, log.jsonl or manifest.jsonl in it, or the folders "
            "brand/, runs/ or images/ (what fit, train and generate write)",
        )
    return page


def _lead(brand: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> str:
    """What the folder holds, in numbers: the lead of a page without one of its own."""
    parts = []
    if fit := read_json(brand / "fit.json"):
        parts.append(f"{fit['used']:,} photos fitted")
    for name, run in runs.items():
        if lines := read_lines(run / "log.jsonl"):
            parts.append(
                f"{name}: {lines[-1]['step']:,} training steps, {_hours(sum(one['seconds'] for one in lines))}"
            )
    parts += [f"{row.caption}: {row.count:,} images checked" for row in rows if row.count]
    return " · ".join(parts)


def _hours(seconds: float) -> str:
    """Seconds as minutes, or hours from 1.5 hours on."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def _curves(runs: Mapping[str, Path], plan: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Losses outside and inside the window, and on validation images, a line a run; none for more runs than COLOURS."""
    if len(runs) > len(figures.COLOURS):
        return ()
    words = plan.get("runs", {})
    logs = {words.get(name, name): read_lines(run / "log.jsonl") for name, run in runs.items()}
    # validation_loss was "held" in schema 1; a run that was gone on with has lines of both
    logs = {name: [{"validation_loss": line.get("held"), **line} for line in lines] for name, lines in logs.items()}
    inside = "The loss inside the window, where the noise contains the start: how well the network uses it."
    outside = "The loss outside the window, where training is plain."
    if len(logs) > 1:
        outside += " Each start and gain has its own target: compare how the losses fall, not how high they are."
    pairs = [
        (outside, figures.curves(logs, "loss_outside", "loss outside")),
        (inside, figures.curves(logs, "loss_inside", "loss inside")),
    ]
    pairs = [pair for pair in pairs if pair[1]] or [("The loss.", figures.curves(logs, "loss", "loss"))]
    validation = (
        "The loss on validation images, with the same noise each time: if it rises, the network learns the photos by "
        "heart."
    )
    pairs.append((validation, figures.curves(logs, "validation_loss", "validation loss")))
    return tuple(pair for pair in pairs if pair[1])


def _validation(runs: Mapping[str, Path]) -> tuple[Thumb, ...]:
    """The first and the last validation image of each run."""
    thumbs = []
    for name, run in runs.items():
        files = sorted((run / "validation").glob("*.png"))
        for file in dict.fromkeys([*files[:1], *files[-1:]]):
            step = file.stem.removeprefix("step-").lstrip("0") or "0"
            alt = f"validation images of {name} at step {step}"
            thumbs.append(image(file, alt, SHEET, caption=f"{name}, step {step}"))
    return tuple(thumbs)


def _brand(brand: Path) -> dict[str, Any]:
    """Fields of Page: the fit and the diagnosis."""
    fit, leak = read_json(brand / "fit.json"), read_json(brand / "leak.json")
    leaks = leak.get("classes", {})
    measured = {tuple(part["resolution"]): part["classes"] for part in leak.get("buckets", ())}
    entries = [("", name, entry, leaks.get(name)) for name, entry in fit.get("classes", {}).items()]
    for part in fit.get("buckets", ()):
        size, place = tuple(part["resolution"]), "{}x{}".format(*part["resolution"])
        entries += [(place, name, one, measured.get(size, {}).get(name)) for name, one in part["classes"].items()]
    cards = []
    for place, name, entry, numbers in entries:
        file = inside(brand / "means" / place, f"{entry['file']}.png", brand / "fit.json")
        title = f"{name}, {place}" if place else name
        mean = image(file, f"Mean of the class {title}") if file.exists() else None
        facts = []
        if numbers:
            facts.append(("stands out at the first step", f"{numbers['sigma']:.1f} sigma"))
            facts.append(("components worth using", str(numbers["k_worth"])))
        if entry.get("r2"):
            facts.append(("predicted by the words (R²)", f"{entry['r2']:.2f}"))
        cards.append(ClassCard(title, entry["count"], mean, tuple(facts)))
    height, width = fit.get("resolution", (0, 0))
    summary = ""
    if fit:
        summary = f"{fit['used']:,} photos at {width} × {height}, encoded by the autoencoder of {fit['model']}; "
        summary += f"a mean and {fit['k']} components for each class of image."
    findings = (
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
        "classes": tuple(cards), "fitted": summary, "findings": tuple(findings), "modes": figures.modes(leaks),
        "refused": tuple((Path(e["file"]).name, e["reason"]) for e in fit.get("refused", ())),
    }  # fmt: skip


def _again(
    plan: Mapping[str, Any], brand: Path, runs: Mapping[str, Path], images: Mapping[str, Path]
) -> dict[str, Any]:
    """Fields of Page: the commands, versions and fingerprints."""
    files = [brand / "fit.json", brand / "leak.json", *(run / "run.json" for run in runs.values())]
    files += [path / name for path in images.values() for name in ("run.json", "check.json")]
    parts = [read_json(file) for file in files]
    commands = plan.get("commands") or [part["command"] for part in parts if part.get("command")]
    facts: dict[str, str] = {}
    for part in parts:
        facts |= {"prior": str(part["prior"])} if part.get("prior") else {}
        facts |= {name: str(value) for name, value in part.get("versions", {}).items()}
        facts |= {f"{name} fingerprint": str(value)[:16] for name, value in part.get("fingerprints", {}).items()}
    return {"commands": tuple(dict.fromkeys(commands)), "facts": tuple(facts.items())}


COLUMNS = 8
"""Images in a row of the comparison: the first ones."""


def read_rows(images: Mapping[str, Path], plan: Mapping[str, Any]) -> tuple[list[Row], tuple[str, ...], str]:
    """Read one row from each images folder.

    Columns are the first (prompt, seed) that the rows have in common. A row that shares none with another, and photos
    (metadata.jsonl in place of a manifest), which have no seed, show their own first images.

    Args:
        images: name of a row -> its folder.
        plan: demo.json.

    Returns:
        The rows in the plan's order, the prompts of the columns, and the words that every prompt ends with.
    """
    entries = {name: lines for name, path in images.items() if (lines := _images(path))}
    words = {row["name"]: row for row in plan.get("rows", ())}
    order = [name for name in words if name in entries] or list(entries)
    seeded = [name for name in order if entries[name][0]["seed"] is not None]
    keyed = {name: {(line["prompt"], line["seed"]): line for line in entries[name]} for name in seeded}
    counts = Counter(key for lines in keyed.values() for key in lines)
    compared = {
        name: lines for name, lines in keyed.items() if len(keyed) == 1 or any(counts[key] > 1 for key in lines)
    }
    first = next(iter(compared.values()), {})
    shared = [key for key in first if counts[key] == len(compared)][:COLUMNS]
    ending = _ending([prompt for prompt, _ in shared])
    rows = []
    for name in order:
        content = read_json(images[name] / "check.json")
        failed = {entry["file"]: tuple(entry["failed"]) for entry in content.get("images", ())}
        lines = [compared[name][key] for key in shared] if shared and name in compared else entries[name][:COLUMNS]
        thumbs = []
        for line in lines:
            file, prompt = line["file"], line["prompt"] or line["file"]
            alt = f"photo: {prompt}" if line["seed"] is None else f"{prompt}, seed {line['seed']}"
            path = inside(images[name], file, images[name])
            thumbs.append(image(path, alt, failed=failed.get(file, ())))
        row = words.get(name, {})
        tone = next((tone for tone in ("before", "after", "real") if plan.get(tone) == name), "")
        rows.append(
            Row(
                name=name,
                caption=row.get("caption", name),
                sentence=row.get("sentence", ""),
                images=tuple(thumbs),
                scores=_scores(content),
                count=int(content.get("count", 0)),
                tone=tone,
            )
        )
    return rows, tuple(prompt.removesuffix(ending) for prompt, _ in shared), ending.removeprefix(", ")


def _images(folder: Path) -> list[dict[str, Any]]:
    """file, prompt, seed of each image: of a manifest, or (seed None) of a photo folder's metadata.jsonl."""
    lines = read_lines(folder / "manifest.jsonl")
    if lines:
        return [{"file": line["file"], "prompt": line["prompt"], "seed": line["seed"]} for line in lines]
    rows = read_lines(folder / "metadata.jsonl")
    return [{"file": row["file_name"], "prompt": row.get("text") or "", "seed": None} for row in rows]


def _ending(prompts: Sequence[str]) -> str:
    """The words after a comma that all prompts end with, and the comma; "" for fewer than two different prompts."""
    if len(set(prompts)) < 2:
        return ""
    common = os.path.commonprefix([prompt[::-1] for prompt in prompts])[::-1]
    return common[common.index(", ") :] if ", " in common else ""


def _scores(content: Mapping[str, Any]) -> tuple[Score, ...]:
    """Every rate and measure of a check.json."""
    rates = {"all": {"title": ALL[0], **content["all"]}} if "all" in content else {}
    rates |= content.get("properties", {})
    scores = [Score(name, e["title"], e["rate"], e.get("low"), e.get("high")) for name, e in rates.items()]
    for name, e in content.get("measures", {}).items():
        scores.append(Score(name, e["title"], e["value"], e.get("low"), e.get("high"), rate=False))
    return tuple(scores)


def ends(rows: Sequence[Row], plan: Mapping[str, Any]) -> tuple[Row | None, Row | None]:
    """The rows of the first screen, which the plan names; None if there is none of a name."""
    by_name = {row.name: row for row in rows}
    return by_name.get(plan.get("before", "")), by_name.get(plan.get("after", ""))


def numbers(rows: Sequence[Row], before: Row | None, after: Row | None, names: Sequence[str]) -> tuple[Number, ...]:
    """The large numbers: the named scores of `after`, beside those of `before` and of the real photos."""
    if after is None:
        return ()
    real = next((row for row in rows if row.tone == "real"), None)
    return tuple(
        Number(score.title, score, before.score(name) if before else None, real.score(name) if real else None)
        for name in names if (score := after.score(name))
    )[:3]  # fmt: skip


def properties(rows: Sequence[Row], images: Mapping[str, Path]) -> tuple[Property, ...]:
    """One block a property or measure, one line in it a row."""
    rules: dict[str, tuple[str, str]] = {}
    for row in rows:
        content = read_json(images[row.name] / "check.json")
        for part in (content.get("properties", {}), content.get("measures", {})):
            rules |= {name: (entry["title"], entry.get("rule", "")) for name, entry in part.items()}
        if "all" in content:
            rules = {"all": ALL, **rules}
    blocks = []
    for name, (title, rule) in rules.items():
        lines = tuple((row, score) for row in rows if (score := row.score(name)))
        tops = [1.0 if score.rate else max(score.high or 0.0, score.value) * 1.05 for _, score in lines]
        blocks.append(Property(title[:1].upper() + title[1:], rule, lines, max(tops) or 1.0))
    return tuple(blocks)


def count(rows: Sequence[Row]) -> int:
    """Images that each row was checked on, if equally many; else 0."""
    counts = {row.count for row in rows if row.scores}
    return counts.pop() if len(counts) == 1 else 0


def strips(images: Mapping[str, Path], rows: Sequence[Row]) -> tuple[Strip, ...]:
    """The first traced image of each row that has one: x0_hat by step."""
    strips = []
    for row in rows:
        traces = sorted(folders(images[row.name] / "trace").values())
        steps = sorted(path for path in traces[0].glob("*-x0.png") if TRACED.match(path.name)) if traces else []
        names = [int(path.stem.split("-t")[1].split("-")[0]) for path in steps]
        thumbs = (image(path, f"x0_hat at t = {t}", caption=f"t = {t}") for path, t in zip(steps, names, strict=True))
        if steps:
            strips.append(Strip(row.caption, tuple(thumbs), row.tone))
    return tuple(strips)


def images_of(folder: Path) -> Path:
    """Where a comparison or demo has its images: images/, or pictures/ of schema 1."""
    return folder / "pictures" if (folder / "pictures").is_dir() else folder / "images"


def folders(path: Path) -> dict[str, Path]:
    """Sub-folders by name, in the order of their names."""
    return {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_dir()} if path.is_dir() else {}
