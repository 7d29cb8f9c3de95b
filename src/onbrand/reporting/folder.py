"""From a folder on disk to what its report says: whatever of a demo, run, brand or pictures folder is there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onbrand.reporting import figures
from onbrand.reporting.page import HEADLINES, Finding, Kind, Number, Page, Property, Row, Score, Strip, Thumb, picture

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


COLUMNS = 8
"""Pictures a row of the comparison shows: the first of the list."""
ALL = "pass every check"


def read_rows(made: Mapping[str, Path], plan: Mapping[str, Any]) -> tuple[list[Row], tuple[str, ...], str]:
    """One Row a pictures folder, in the plan's order; columns are the first (prompt, seed) that rows have in common.

    Rows that share none with another, and photos (metadata.jsonl in the place of a manifest), which have no seed, show
    their own first ones.
    """
    found = {name: lines for name, path in made.items() if (lines := _pictures(path))}
    words = {row["name"]: row for row in plan.get("rows", ())}
    order = [name for name in words if name in found] or list(found)
    seeded = [name for name in order if found[name][0]["seed"] is not None]
    keyed = {name: {(line["prompt"], line["seed"]): line for line in found[name]} for name in seeded}
    met = Counter(key for lines in keyed.values() for key in lines)
    compared = {name: lines for name, lines in keyed.items() if len(keyed) == 1 or any(met[key] > 1 for key in lines)}
    first = next(iter(compared.values()), {})
    shared = [key for key in first if met[key] == len(compared)][:COLUMNS]
    ending = _ending([prompt for prompt, _ in shared])
    rows = []
    for name in order:
        checked = read_json(made[name] / "check.json")
        failed = {entry["file"]: tuple(entry["failed"]) for entry in checked.get("pictures", ())}
        shown = [compared[name][key] for key in shared] if shared and name in compared else found[name][:COLUMNS]
        thumbs = []
        for line in shown:
            file, prompt = line["file"], line["prompt"] or line["file"]
            alt = f"photo: {prompt}" if line["seed"] is None else f"{prompt}, seed {line['seed']}"
            thumbs.append(picture(made[name] / file, alt, failed=failed.get(file, ())))
        said = words.get(name, {})
        tone = next((tone for tone in ("before", "after", "real") if plan.get(tone) == name), "")
        rows.append(
            Row(
                name=name,
                caption=said.get("caption", name),
                sentence=said.get("sentence", ""),
                pictures=tuple(thumbs),
                scores=_scores(checked),
                count=int(checked.get("count", 0)),
                tone=tone,
            )
        )
    return rows, tuple(prompt.removesuffix(ending) for prompt, _ in shared), ending.removeprefix(", ")


def _pictures(folder: Path) -> list[dict[str, Any]]:
    """file, prompt, seed of each picture: of a manifest, or (seed None) of a photo folder's metadata.jsonl."""
    lines = read_lines(folder / "manifest.jsonl")
    if lines:
        return [{"file": line["file"], "prompt": line["prompt"], "seed": line["seed"]} for line in lines]
    rows = read_lines(folder / "metadata.jsonl")
    return [{"file": row["file_name"], "prompt": row.get("text", ""), "seed": None} for row in rows]


def _ending(prompts: Sequence[str]) -> str:
    """The words after a comma that all prompts end in, comma included; "" for fewer than two different prompts."""
    if len(set(prompts)) < 2:
        return ""
    common = os.path.commonprefix([prompt[::-1] for prompt in prompts])[::-1]
    return common[common.index(", ") :] if ", " in common else ""


def _scores(checked: Mapping[str, Any]) -> tuple[Score, ...]:
    """Every share and measure of a check.json."""
    shares = {"all": {"title": ALL, **checked["all"]}} if "all" in checked else {}
    shares |= checked.get("properties", {})
    scores = [Score(name, e["title"], e["share"], e.get("low"), e.get("high")) for name, e in shares.items()]
    for name, e in checked.get("measures", {}).items():
        scores.append(Score(name, e["title"], e["value"], e.get("low"), e.get("high"), share=False))
    return tuple(scores)


def ends(rows: Sequence[Row], plan: Mapping[str, Any]) -> tuple[Row | None, Row | None]:
    """The rows of the first screen: those the plan names."""
    named = {row.name: row for row in rows}
    return named.get(plan.get("before", "")), named.get(plan.get("after", ""))


def numbers(rows: Sequence[Row], before: Row | None, after: Row | None, names: Sequence[str]) -> tuple[Number, ...]:
    """The large numbers: the named scores of `after`, beside those of `before` and of the real photos."""
    if after is None:
        return ()
    real = next((row for row in rows if row.tone == "real"), None)
    return tuple(
        Number(score.title, score, before.score(name) if before else None, real.score(name) if real else None)
        for name in names if (score := after.score(name))
    )[:3]  # fmt: skip


def properties(rows: Sequence[Row], made: Mapping[str, Path]) -> tuple[Property, ...]:
    """The check table, turned: one block a property, one line a row."""
    rules: dict[str, tuple[str, str]] = {}
    for row in rows:
        checked = read_json(made[row.name] / "check.json")
        for part in (checked.get("properties", {}), checked.get("measures", {})):
            rules |= {name: (entry["title"], entry.get("rule", "")) for name, entry in part.items()}
        if "all" in checked:
            rules = {
                "all": (ALL, "Pictures that pass all of the checks below: fit to be published as they are."),
                **rules,
            }
    blocks = []
    for name, (title, rule) in rules.items():
        lines = tuple((row, score) for row in rows if (score := row.score(name)))
        tops = [1.0 if score.share else max(score.high or 0.0, score.value) * 1.05 for _, score in lines]
        blocks.append(Property(title[:1].upper() + title[1:], rule, lines, max(tops) or 1.0))
    return tuple(blocks)


def count(rows: Sequence[Row]) -> int:
    """How many pictures each row was checked on, where it is the same for all; else 0."""
    counts = {row.count for row in rows if row.scores}
    return counts.pop() if len(counts) == 1 else 0


def strips(made: Mapping[str, Path], rows: Sequence[Row]) -> tuple[Strip, ...]:
    """The first traced picture of every row that has one: x0_hat by step."""
    strips = []
    for row in rows:
        traced = sorted(folders(made[row.name] / "trace").values())
        steps = sorted(traced[0].glob("*-x0.png")) if traced else []
        # 00-t951-x0.png: step 0, timestep 951
        names = [int(path.stem.split("-")[1].removeprefix("t")) for path in steps]
        thumbs = (picture(path, f"x0_hat at t = {t}", caption=f"t = {t}") for path, t in zip(steps, names, strict=True))
        if steps:
            strips.append(Strip(row.caption, tuple(thumbs), row.tone))
    return tuple(strips)


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
