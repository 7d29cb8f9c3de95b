"""`report` and `check` of a folder from somebody else, whose every word, image and file may be turned against them."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import Parsed, bomb, empty, eps

from processes import SERVER, command, complete, prepare

MARK, COLOUR = "mark-of-what-lies-outside", (13, 211, 97)
"""In every text, and the colour of every image, outside of the folder."""
STARTS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
          "os.system", "pty.spawn", "socket.connect", "urllib.Request", "webbrowser.open", "ctypes.dlopen")  # fmt: skip
"""Audit events of programs that are started, and of the network."""
COUNT = 150
"""Attacks of one run of the test, of several hundred that there are."""
Attack = tuple[str, Callable[[], object]]


@pytest.fixture(scope="module")
def stranger(world: Path) -> Path:
    """brand/, runs/run/, images/{row,photos}/, demo.json, as they should be."""
    prepare(world)
    folder = world / "stranger"
    for name, place in (("brand", "brand"), ("lora", "runs/run"), ("images", "images/row"), ("held_out", "images/p")):
        shutil.copytree(world / name, folder / place, ignore=shutil.ignore_patterns("latents", "state", "model"))
    for verb, place in (("diagnose", "brand"), ("check", "images/row"), ("check", "images/p")):
        complete(command(verb, world, folder / place), world / "log")
    plan = {"title": "t", "lead": "l", "notes": ["n"], "commands": ["c"], "numbers": ["all"], "before": "row",
            "after": "row", "real": "p", "runs": {"run": "words"},
            "rows": [{"name": "row", "caption": "c", "sentence": "s"}, {"name": "p"}]}  # fmt: skip
    (folder / "demo.json").write_text(json.dumps(plan))
    return folder


def lay_outside(folder: Path, stranger: Path) -> None:
    """Beside the folder: the same files, their texts and images marked."""
    for file in (path for path in stranger.rglob("*") if path.is_file()):
        place = folder / file.relative_to(stranger)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            Image.new("RGB", (64, 64), COLOUR).save(place)
        elif file.suffix in (".json", ".jsonl", ".yaml"):
            words = r'("(?:prompt|text|title|command|caption|sentence)": ")'
            place.write_text(re.sub(words, rf"\1{MARK}", file.read_text()))
        else:
            shutil.copy(file, place)
    Image.new("RGB", (64, 64), COLOUR).save(folder / "secret.png")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all texts in a JSON value, the names in it too (they end in None): the first of each list."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        yield from places(value[0], (*path, 0)) if value else ()
    elif isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name, None)
            yield from places(item, (*path, name))


def changed(value: Any, path: tuple[Any, ...], text: str) -> Any:
    """A JSON value with another text, or name, at `path`."""
    if not path:
        return text
    if path[1:] == (None,):
        return {text if name == path[0] else name: item for name, item in value.items()}
    parts = dict(value) if isinstance(value, dict) else list(value)
    parts[path[0]] = changed(parts[path[0]], path[1:], text)
    return parts


def attacks(folder: Path, outside: Path) -> Iterator[Attack]:
    """What it is, and what does it to a fresh copy in `folder`."""
    up = "../" * 6 + "../" * len(folder.parts) + str(outside / "secret.png").lstrip("/")
    words = [str(outside / "secret.png"), up, "<script>alert(1)</script>", "\"><img src=x onerror='a()'>"]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = {(re.sub(r"\d+", "0", str(file.relative_to(folder)))): file for file in reversed(files)}
    for kind, file in kinds.items():
        if file.suffix in (".json", ".jsonl"):
            lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            first = json.loads(lines[0])
            first.pop("sha256", None)  # of itself: whoever changes it takes that out
            for number, path in enumerate(places(first)):
                for word in words[2 + number % 2 :][:1] if path[-1] is None else words[:3]:
                    text = "\n".join([json.dumps(changed(first, path, word)), *lines[1:]]) + "\n"
                    yield f"{kind} {path} {word}", lambda file=file, text=text: file.write_text(text)
        if file.suffix == ".png":
            for spoil in (eps, bomb, empty):
                yield f"{kind} {spoil.__name__}", lambda file=file, spoil=spoil: spoil(file, outside / "executed")
        target = outside / file.relative_to(folder)
        yield f"{kind} a link", lambda file=file, target=target: (file.unlink(), file.symlink_to(target))
    for place in sorted(path for path in folder.rglob("*") if path.is_dir()):
        target = outside / place.relative_to(folder)
        yield f"{place} a link", lambda place=place, target=target: (shutil.rmtree(place), place.symlink_to(target))
        for name in ("more", "<script>.png"):
            yield f"{place}/{name} a link", lambda place=place, name=name: (place / name).symlink_to(outside)
    row = folder / "images" / "row"
    for word in ("<script>alert(1)<%2Fscript>.png", "' onload='x.png", "a\nb\x1b[2J.png"):
        lines = (row / "manifest.jsonl").read_text().replace('"00000.png"', json.dumps(word))
        yield f"in images/row an image called {word}", lambda word=word, lines=lines: (
            (row / "00000.png").rename(row / word), (row / "manifest.jsonl").write_text(lines))  # fmt: skip


def suffer(world: Path, stranger: Path, folder: Path, outside: Path, log: Path, seed: int) -> None:
    """The child: COUNT of the attacks, one after the other; what came of each, as JSON lines in `log`."""
    import torch

    from onbrand.cli import main

    torch.set_num_threads(1)
    events: list[str] = []

    def watch(event: str, values: tuple[Any, ...]) -> None:
        opens = event in ("open", "os.listdir", "os.scandir") and str(values[0]).startswith(str(outside))
        if opens or event in STARTS:
            events.append(f"{event} {values[0]}")

    shutil.copytree(stranger, folder)
    trials = random.Random(seed).sample(list(attacks(folder, outside)), COUNT)
    sys.addaudithook(watch)
    with log.open("w") as file:
        for name, attack in trials:
            shutil.rmtree(folder)
            shutil.copytree(stranger, folder)
            attack()
            events.clear()
            codes, page = {}, folder / "report.html"
            rows = [folder / "images" / row for row in ("row", "p") if f"images/{row}" in name]
            checks = [("check", row) for row in rows if row.resolve() == row]  # a link that is named is the user's own
            for verb, place in [("report", folder), *checks]:
                words = ["report", place, "--output_file", page] if verb == "report" else command("check", world, place)
                try:
                    codes[f"{verb} {place.name}"] = main([str(word) for word in words])
                except Exception as error:
                    codes[f"{verb} {place.name}"] = repr(error)
            own = [path for path in (page, *folder.glob("images/*/check.json")) if path.is_file()]
            own = [path for path in own if path.resolve().is_relative_to(folder.resolve())]
            texts = {path.name: path.read_text() for path in own}
            print(json.dumps({"attack": name, "codes": codes, "events": events, "texts": texts}), file=file, flush=True)


def faults(trial: dict[str, Any]) -> Iterator[str]:
    yield from trial["events"]
    yield from (f"{verb}: {code}" for verb, code in trial["codes"].items() if code not in (0, 2))
    yield from (f"{name} holds a text" for name, text in trial["texts"].items() if MARK in text)
    document = Parsed(trial["texts"].get("report.html", ""))
    yield from (f"nesting of {tag}" for tag in document.faults)
    for tag, attributes in document.tags:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            yield f"<{tag}>"
        for name, value in attributes.items():
            if name.startswith("on") or (name in ("href", "src") and not re.match("#|data:image/", value or "")):
                yield f"{name}={value}"
        if tag == "img" and (source := attributes["src"] or "").startswith("data:image/") and "svg" not in source[:20]:
            with Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            if (abs(pixels - COLOUR).max(2) < 3).any():
                yield "holds an image"


@pytest.mark.prove
def test_nothing_is_started_and_nothing_from_outside_is_shown(world: Path, stranger: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"attacks from seed {seed}")
    folder, outside, log = tmp_path / "in" / "stranger", tmp_path / "outside", tmp_path / "log"
    lay_outside(outside, stranger)
    process = SERVER.Process(target=suffer, args=(world, stranger, folder, outside, log, seed))
    process.start()
    process.join()
    assert process.exitcode == 0 and not (outside / "executed").exists()
    trials = [json.loads(line) for line in log.read_text().splitlines()]
    assert {t["attack"]: list(faults(t)) for t in trials if list(faults(t))} == {}
    codes = [code for trial in trials for code in trial["codes"].values()]
    print(f"{len(trials)} attacks, {codes.count(2)} of {len(codes)} runs refused")
    assert len(trials) == COUNT
