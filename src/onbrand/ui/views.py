"""What the page shows of a brand, read off what the verbs left: HTML, rows of tables, images with their captions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from onbrand.core.prior import FILE as PRIOR
from onbrand.data.images import open_image
from onbrand.data.records import CHECK, open_folder
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import inside, read_json, read_lines
from onbrand.reporting.figures import curves, modes
from onbrand.sampling.manifest import read_manifest
from onbrand.ui.jobs import Job, Jobs, said
from onbrand.ui.overlay import drawn, reference_of
from onbrand.ui.studio import REPORT, Brand, Studio

SHOWN = 48
"""Images shown of a folder: the first ones."""
THUMB = 256
"""Pixels of the longer side of a photo that is shown."""
SEEN = 2.0
"""Sigma from which a mean is seen."""
Pictures = list[tuple[Any, str]]
"""Images or their files, and a caption each."""
DOWNLOADS = (f"brand/{PRIOR}", "runs/*/model/*.safetensors", f"images/*/{CHECK}", REPORT)
ENDINGS = {"done": "is done", "failed": "did not work", "stopped": "was stopped"}


def status(jobs: Jobs, name: str | None) -> str:
    """What runs, with its bar; what waits; how what this brand asked for last ended."""
    parts = []
    if job := jobs.running:
        what, share, words = job.progress() or ("", 0.0, "begins")
        bar = f'<div class="bar"><div style="width: {share:.1%}"></div></div>'
        parts.append(f"<b>{_title(job)}</b> runs: {escape(what)} {escape(words)}{bar}")
    parts += [f"waits: {_title(job)}" for job in jobs.waiting]
    if not parts and (job := jobs.last(name)):
        level = "wrong" if job.state == "failed" else ""
        words = f'<div class="said {level}">{escape(said(job))}</div>'
        asked = "\n".join(shlex.join(command) for command in job.commands)
        command = f'<details><summary>as a command</summary><div class="said">{escape(asked)}</div></details>'
        parts.append(f"<b>{_title(job)}</b> {ENDINGS[job.state]}{words}{command}")
    return f'<div class="card" id="status">{"<br>".join(parts) or "Nothing runs."}</div>'


def _title(job: Job) -> str:
    return escape(f"{job.title} ({job.brand})")


def seen(brand: Brand) -> str:
    """What `look` saw."""
    cards = []
    for part, content in brand.look.items():
        if "error" in content:
            cards.append(_card("problem", f"<b>{part}</b>: {escape(content['error'])}"))
            continue
        lines = list(content["lines"])
        if part == "photos":
            classes = ", ".join(f"{name} ({count:,})" for name, count in content["classes"].items())
            lines += [f"classes: {classes}", f"{sum(content['classes'].values()):,} will be read"]
        level = "warning" if content.get("refused") else "fine"
        more = f"<br><b>{len(content['refused']):,} refused</b>, below" if content.get("refused") else ""
        cards.append(_card(level, f"<b>{part}</b><br>{'<br>'.join(map(escape, lines))}{more}"))
    return "".join(cards)


def refused(brand: Brand) -> list[list[str]]:
    """The files that `look` saw and `fit` will not read, and why."""
    return [[one["file"], one["reason"]] for one in brand.look.get("photos", {}).get("refused", [])]


def photographs(studio: Studio, brand: Brand) -> Pictures:
    """Some of the photos that were chosen, evenly spread over them, each with its class."""
    try:
        records = open_folder(studio.path_of(brand.settings.get("photos"))).records
    except OnbrandError:
        return []
    pictures = []
    for record in records[:: max(1, len(records) // 24)][:24]:
        try:
            image = record.open()
        except UnreadableImage:
            continue
        image.thumbnail((THUMB, THUMB))
        pictures.append((image, record.class_name))
    return pictures


def fitted(brand: Brand) -> str:
    """What `fit` found, class by class."""
    if not brand.fit:
        return ""
    rows = [
        f"<tr><td>{escape(name)}</td><td>{one['count']:,}</td><td>{escape(', '.join(one.get('starts', [])))}</td></tr>"
        for name, one in brand.fit["classes"].items()
    ]
    table = f"<table><tr><th>class</th><th>photos</th><th>starts that so many allow</th></tr>{''.join(rows)}</table>"
    lost = len(brand.fit.get("refused", []))
    return _card("fine", f"{brand.fit['used']:,} photos fitted, {lost:,} refused{table}")


def means(brand: Brand) -> Pictures:
    """The class means, decoded."""
    folder = brand.prior / "means"
    files = [(folder / f"{one['file']}.png", name) for name, one in brand.fit.get("classes", {}).items()]
    return [(str(file), name) for file, name in files if file.is_file()]


def diagnosis(brand: Brand) -> str:
    """The findings, the worst first, and the picture of the leak."""
    leak = brand.leak
    if not leak:
        return ""
    sigmas, several = [one["sigma"] for one in leak["classes"].values()], len(leak["classes"]) > 1
    words = f"{min(sigmas):.1f} to {max(sigmas):.1f}" if several else f"{sigmas[0]:.1f}"
    lead = f"In the noisiest image that training shows, the mean of your photos stands {words} sigma out of the noise."
    if max(sigmas) > SEEN:
        lead += " A model learns to lean on it; pure noise, where images usually start, does not have it."
    cards = [
        _card(one["level"], f"<b>{one['code']} {escape(one['title'])}</b>"
              f"{' (' + escape(one['class']) + ')' if several and one.get('class') else ''}<br>"
              f"{escape(one['sentence'])}<br><i>{escape(one.get('remedy') or '')}</i>")
        for one in leak["findings"]
    ]  # fmt: skip
    picture = modes(leak["classes"])
    note = "<p>Component by component: above the line, the photos show through the noise.</p>"
    return f"<p>{lead}</p>" + "".join(cards or [_card("fine", "Nothing leaks.")]) + (note + picture if picture else "")


def pair(brand: Brand) -> tuple[str, Pictures, Pictures]:
    """The newest images: in words, from noise, and from the brand's start."""
    sets = brand.image_sets
    if not sets:
        return "", [], []
    number = sets[0].partition("-")[0]
    both = [f"{number}-noise", *(one for one in sets if one.startswith(f"{number}-") and not one.endswith("-noise"))]
    pictures = [_pictures(brand.images(one)) for one in both[:2]] + [[]]
    words = " and ".join(f"<b>{escape(one)}</b> ({len(shown)})" for one, shown in zip(both, pictures, strict=False))
    return f"Images of {words}: the same descriptions and seeds.", pictures[0], pictures[1]


def _pictures(folder: Path) -> Pictures:
    entries = read_manifest(folder) if (folder / "manifest.jsonl").is_file() else {}
    files = [(inside(folder, one["file"], folder), one["prompt"]) for _, one in sorted(entries.items())[:SHOWN]]
    return [(str(file), prompt) for file, prompt in files if file.is_file()]


def verdict(content: Mapping[str, Any]) -> str:
    """check.json in words and a table."""
    if not content:
        return "Not checked yet."
    rows = [
        f"<tr><td>{escape(one['title'])}</td><td>{one['rate']:.0%}</td>"
        f"<td>{one['low']:.0%} to {one['high']:.0%}</td></tr>"
        for one in content["properties"].values()
    ]
    table = f"<table><tr><th>images that are</th><th>rate</th><th>95 % interval</th></tr>{''.join(rows)}</table>"
    whole = content["all"]
    level = "fine" if whole["rate"] >= 0.9 else "warning" if whole["rate"] >= 0.5 else "problem"
    return _card(level, f"<b>{whole['rate']:.0%} of {content['count']} images pass every check</b>{table}")


def failures(content: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Titles and rows, an image each: its file, what it fails, its numbers."""
    names = list(dict.fromkeys(name for one in content.get("images", []) for name in one["values"]))
    rows = [
        [one["file"], ", ".join(one["failed"]) or "", *(one["values"].get(name) for name in names)]
        for one in content.get("images", [])
    ]
    return ["file", "fails", *names], rows


def overlay(brand: Brand, images: str, file: str) -> Image.Image | None:
    """The image with the brand's ranges drawn over it; None without a check."""
    folder, reference = brand.images(images), reference_of(brand.prior)
    path = inside(folder, file, folder / CHECK)
    if reference is None or not path.is_file():
        return None
    entries = read_manifest(folder) if (folder / "manifest.jsonl").is_file() else {}
    classes = {one["file"]: one.get("class") for one in entries.values()}
    return drawn(open_image(path, smallest=8), reference, classes.get(file) or "")


def validation(brand: Brand, run: str) -> list[str]:
    """A run's validation images, the latest first."""
    files = (brand.run(run) / "validation").glob("*.png")
    return [str(file) for file in sorted(files, key=lambda file: _numbers(file.name), reverse=True)[:12]]


def losses(brand: Brand, run: str) -> str:
    """A run's loss by steps, drawn; "" before the first."""
    lines = read_lines(brand.run(run) / "log.jsonl")
    return curves({run: lines}, "loss", "loss") if lines else ""


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def downloads(brand: Brand) -> list[str]:
    """What is worth taking along: the prior, what was trained, verdicts, the page."""
    return [str(file) for pattern in DOWNLOADS for file in sorted(brand.path.glob(pattern)) if file.is_file()]


def link(brand: Brand) -> str:
    """To the report."""
    if not (brand.path / REPORT).is_file():
        return ""
    return f'<a href="/report/{quote(brand.name)}" target="_blank">Open the report of {escape(brand.name)}</a>'


def _card(level: str, content: str) -> str:
    return f'<div class="card {level}">{content}</div>'


def content_of(brand: Brand, images: str | None) -> dict[str, Any]:
    """check.json of a folder of images; {} if it was not checked."""
    return read_json(brand.images(images) / CHECK) if images in brand.image_sets else {}
