"""Folders of pictures -> the rows of the comparison, their numbers, and the check table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onbrand.report.files import folders, read_json, read_lines
from onbrand.report.page import Number, Property, Row, Score, Strip, picture

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
