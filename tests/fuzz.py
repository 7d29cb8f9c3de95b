"""Damages every kind of file that onbrand writes, at random from a seed, and reads it as its verbs do.

    python tests/fuzz.py COUNT [SEED [KIND ...]]

prints, as JSON, for each kind how often it was refused (an OnbrandError) and taken, and every fault: another
exception, a reading of more than LIMIT seconds or MEMORY bytes, or a result that is not as it should be, with the
number of the damage, by which it is done again.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from onbrand import cli
from onbrand.comparison.tables import legend, passed, scores
from onbrand.core import Fitter, Prior
from onbrand.core.prior_file import fingerprint_of
from onbrand.data.images import is_whole
from onbrand.data.latents import Key, Store, _name
from onbrand.data.sums import FOLDER, sum_shards
from onbrand.errors import LONGEST, OnbrandError
from onbrand.evaluation.likelihood import _read as read_unseen
from onbrand.evaluation.reference import Reference
from onbrand.evaluation.text import AttributeClassifier
from onbrand.io import SEAL, read_json
from onbrand.models.checkpoint import lora_metadata, trained_start_in
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.reporting import folder as report
from onbrand.reporting.page import render
from onbrand.sampling.manifest import read_manifest, read_settings
from onbrand.training.early_stopping import read_pass_rates
from onbrand.training.state import check_same, read_state, save_state, trim_log

ARCHIVE = Path(__file__).parent / "archive" / "v0"
LIMIT = 10.0
"""Seconds that a reading may take."""
MEMORY = 1 << 30
"""Bytes that it may take beyond what the imports have."""
STATE = "run/state/step-00000004"
SEALED = "sealed/step-00000004"
"""The same state as this version writes it."""
LONG = "a" * 100_000
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 3.5, "", "a", [], {}, [None], {"a": 1}, [[[]]], "../../a", "/etc/passwd", "C:\\a",
    LONG, "\0", "\ud800", "é\u2028\u202e", "NaN", 10**30, -(10**15), 2**63, 1e300, -1e300, 1e-320, float("nan"),
    float("inf"), float("-inf"), ["a"] * 3, {"": ""}, "DEEP", "DIGITS",
]  # fmt: skip
"""What a value becomes; DEEP and DIGITS: lists a hundred thousand deep, and a number of 5,000 digits."""
TEXTS = {'"DEEP"': b"[" * 100_000, '"DIGITS"': b"9" * 5000}


class Wrong(Exception):  # noqa: N818
    """A damaged file was taken, and what it gave is not as it should be."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one lies, how it is damaged, and how it is read."""

    file: str
    form: str
    read: Callable[[Path, bool], object]
    """Called with the folder and whether to read it in full, as slow as that is."""


def sound(ok: object, words: str) -> None:
    """Raises Wrong unless ok."""
    if not ok:
        raise Wrong(words)


def read_prior(root: Path, full: bool) -> None:
    prior = Prior.load(root / "brand" / "prior.safetensors")
    for gaussian in prior.gaussians.values():
        sound(all(part.isfinite().all() for part in (gaussian.mean, gaussian.components, gaussian.variances)), "finite")
        sound((gaussian.variances >= 0).all() and 0 <= gaussian.total < 1e9, "variances")
        sound(type(gaussian.count) is int and gaussian.count > 0, "count")
    sound(all(type(side) is int and side > 0 for side in prior.provenance.resolution), "resolution")
    sound(prior.sample(prior.classes, prior.k).abs().max() < 1e7, "a draw")
    for name, part in prior.text.items():
        embedding = torch.randn(1, len(part.text_mean))
        sound(
            part.draw(prior.gaussians[name], embedding, torch.randn(1, part.weight.shape[1])).isfinite().all(), "text"
        )


def read_brand(root: Path, full: bool) -> None:
    if full:
        render(report.read(root / "brand"))
    for name in ("fit.json", "leak.json"):
        read_json(root / "brand" / name)


def read_check(root: Path, full: bool) -> None:
    if full:
        render(report.read(root / "images"))
    legend([root / "images"])
    sound(all(0 <= entry.get("rate", 0) <= 1 for entry in [read_json(root / "images" / "check.json")["all"]]), "rate")
    scores(root / "images")
    passed(root / "images", "all")


def read_lines_of_images(root: Path, full: bool) -> None:
    entries = read_manifest(root / "images")
    if full:
        render(report.read(root / "images"))
    for index, entry in entries.items():
        sound(entry["index"] == index and ".." not in entry["file"], "file")


def read_settings_of_images(root: Path, full: bool) -> None:
    SamplingSettings(**read_settings(root / "images")["settings"])


def read_run(root: Path, full: bool) -> None:
    if full:
        render(report.read(root / "lora"))
    read_json(root / "lora" / "run.json")


def read_plan(root: Path, full: bool) -> None:
    if full:
        render(report.read(root / "compare"))
    read_json(root / "compare" / "demo.json")


def read_comparison(root: Path, full: bool) -> None:
    for scores_of in read_json(root / "compare" / "compare.json")["methods"].values():
        sound(all({"value", "low", "high", "n"} <= set(entry) for entry in scores_of.values()), "scores")


def read_reference(root: Path, full: bool) -> None:
    content = read_json(root / "brand" / "reference.json")
    reference = Reference.from_json(json.dumps(content["reference"]))
    bounds = [bound for numbers in reference.bounds.values() for pair in numbers.values() for bound in pair]
    sound(all(bound == bound for bound in bounds), "a bound")  # noqa: PLR0124  (nan)
    sound(all(type(number) is int for number in (*reference.background, *reference.count)), "whole numbers")


def read_numbers_of_photos(root: Path, full: bool) -> None:
    prior = Prior.load(root / "brand" / "prior.safetensors")
    for numbers in (read_unseen(root / "brand", prior) or {}).values():
        sound(all(abs(value) < 1e16 for value in numbers.values()), "numbers")


def read_state_of_run(root: Path, full: bool) -> None:
    state = read_state(root / STATE)
    check_same(state.settings, SETTINGS, 4)


def read_sealed_state(root: Path, full: bool) -> None:
    state, own = read_state(root / SEALED), read_state(ARCHIVE / STATE)
    if not {"files", SEAL} & set(read_json(root / SEALED / "state.json")):
        return  # both are gone: it is one of before them
    moments = state.optimizer["state"][0], own.optimizer["state"][0]
    for parts, others in ((state.weights, own.weights), (state.ema, own.ema), moments):
        sound(parts.keys() == others.keys(), "names")
        sound(all(torch.equal(part, others[name]) for name, part in parts.items()), "other numbers")
    sound((state.settings, state.counters) == (own.settings, own.counters), "other settings")


def read_log(root: Path, full: bool) -> None:
    read_pass_rates(root / "run")
    if full:
        render(report.read(root / "run"))
    log = (root / "run" / "log.jsonl").read_bytes()
    trim_log(root / "run" / "log.jsonl", 4)
    sound(log.startswith((root / "run" / "log.jsonl").read_bytes()), "only the end goes")


def read_config(root: Path, full: bool) -> None:
    train = next(verb for verb in cli.VERBS if verb.__name__ == "train")
    cli.read_config(train, str(root / "run" / "config.yaml"))


def read_start(root: Path, full: bool) -> None:
    record = trained_start_in(root / "lora")
    sound(
        record is None or (type(record["start_timestep"]) is int and record["gain"] in ("window", "constant")), "start"
    )


def read_lora(root: Path, full: bool) -> None:
    metadata = lora_metadata(root / "lora")[1]
    sound(isinstance(metadata.get("base", ""), str), "base")


def read_classifier(root: Path, full: bool) -> None:
    classifier = AttributeClassifier.load(root / "classifier")
    sound(all(part.isfinite().all() for part in classifier(torch.rand(1, 3, 32, 32)).values()), "a reading")


def read_shard(root: Path, full: bool) -> None:
    store = Store(root / "brand" / "latents", KEY)
    for key in list(store._places):
        sound(all(part.isfinite().all() for part in store.get([key])), "latents")


def read_sums(root: Path, full: bool) -> None:
    store = Store(root / "summed", SUMMED)
    keys, classes = sorted(store._places), ["a", "b"] * 50
    (part,) = sum_shards(store, keys, classes, (4, 4, 4))
    truth = Fitter((4, 4, 4))
    truth.update(store.read(keys, "mean"), classes)
    state, own = part.state(), truth.state()
    sound(state.keys() == own.keys() and all(torch.equal(state[name], own[name]) for name in own), "other sums")


def read_image(root: Path, full: bool) -> None:
    file, own = root / "images" / "00001.png", ARCHIVE / "images" / "00001.png"
    if is_whole(file):
        with Image.open(file) as image, Image.open(own) as original:
            sound(np.array_equal(np.asarray(image), np.asarray(original)), "other pixels")


VAE = json.loads(next(ARCHIVE.glob("brand/latents/*/key.json")).read_text())["vae"]
KEY = Key(VAE, (16, 16))
"""Of the archive's latents."""
SUMMED, IMAGES = Key("v", (32, 32)), [f"{i:064x}" for i in range(100)]
"""Of latents with sums beside them."""
SETTINGS = TrainSettings(
    start="mean", gain="constant", max_train_steps=6, train_batch_size=4, learning_rate=1e-3, ema_decay=0.9,
    checkpointing_steps=2, checkpoints_total_limit=1,
)  # fmt: skip
"""Of the archive's run."""
SHARD = str(next(ARCHIVE.glob("brand/latents/*/*.safetensors")).relative_to(ARCHIVE))
KINDS = {
    "prior": Kind("brand/prior.safetensors", "safetensors", read_prior),
    "prior, forged": Kind("brand/prior.safetensors", "forged", read_prior),
    "fit.json": Kind("brand/fit.json", "json", read_brand),
    "leak.json": Kind("brand/leak.json", "json", read_brand),
    "check.json": Kind("images/check.json", "json", read_check),
    "manifest.jsonl": Kind("images/manifest.jsonl", "lines", read_lines_of_images),
    "config.json": Kind("images/config.json", "json", read_settings_of_images),
    "image": Kind("images/00001.png", "bytes", read_image),
    "run.json": Kind("lora/run.json", "json", read_run),
    "demo.json": Kind("compare/demo.json", "json", read_plan),
    "compare.json": Kind("compare/compare.json", "json", read_comparison),
    "reference.json": Kind("brand/reference.json", "json", read_reference),
    "unseen.json": Kind("brand/unseen.json", "json", read_numbers_of_photos),
    "state.json": Kind(f"{STATE}/state.json", "json", read_state_of_run),
    "weights": Kind(f"{STATE}/weights.safetensors", "safetensors", read_state_of_run),
    "optimizer.pt": Kind(f"{STATE}/optimizer.pt", "bytes", read_state_of_run),
    "state.json, sealed": Kind(f"{SEALED}/state.json", "json", read_sealed_state),
    "weights, sealed": Kind(f"{SEALED}/weights.safetensors", "safetensors", read_sealed_state),
    "optimizer.pt, sealed": Kind(f"{SEALED}/optimizer.pt", "bytes", read_sealed_state),
    "log.jsonl": Kind("run/log.jsonl", "lines", read_log),
    "config.yaml": Kind("run/config.yaml", "yaml", read_config),
    "onbrand/config.json": Kind("lora/model/onbrand/config.json", "json", read_start),
    "LoRA": Kind("lora/model/pytorch_lora_weights.safetensors", "safetensors", read_lora),
    "reader.json": Kind("classifier/reader.json", "json", read_classifier),
    "reader.safetensors": Kind("classifier/reader.safetensors", "safetensors", read_classifier),
    "shard": Kind(SHARD, "safetensors", read_shard),
    "sums": Kind(
        f"summed/{SUMMED.digest[:16]}/{FOLDER}/000-{_name({'keys': IMAGES, 'refused': {}})}.safetensors",
        "safetensors",
        read_sums,
    ),
}


def damaged(content: bytes, form: str, rng: random.Random) -> bytes:
    """The content of a file, damaged in a way that its form allows."""
    if form == "forged":
        return forged(content, rng)
    if form == "bytes" or rng.random() < 0.25:
        return with_other_bytes(content, rng)
    if form == "safetensors":
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        if header.get("__metadata__", {}).get("onbrand", "").startswith("{") and rng.random() < 0.5:
            header["__metadata__"]["onbrand"] = text_of(
                changed(json.loads(header["__metadata__"]["onbrand"]), rng)
            ).decode("utf-8", "replace")
            text = json.dumps(header).encode("utf-8", "replace")
        else:
            text = text_of(changed(header, rng))
        length = rng.choice([len(text)] * 8 + [0, 2**63, len(text) - 1, len(text) + 100])
        return struct.pack("<Q", length) + text + content[8 + size :]
    if form == "yaml":
        return yaml.safe_dump(changed(yaml.safe_load(content), rng)).encode("utf-8", "replace")
    if form == "lines":
        lines = content.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = text_of(changed(json.loads(lines[place]), rng))
        return b"\n".join(lines) + b"\n"
    return text_of(changed(json.loads(content), rng))


def forged(content: bytes, rng: random.Random) -> bytes:
    """A prior with a changed header or changed numbers, and the fingerprint that it then has."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    about = json.loads(header["__metadata__"]["onbrand"])
    about.pop("fingerprint")
    parts = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if rng.random() < 0.6:
        about = changed(about, rng)
    else:
        entry = parts[rng.choice(sorted(parts))]
        first, last = entry["data_offsets"]
        place = rng.randrange(first, last, 4)
        number = rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1e30, -1e30, 1e6, 1e-40, 2.0])
        data[place : place + 4] = struct.pack("<f", number)
    tensors = {}
    for name, entry in parts.items():
        first, last = entry["data_offsets"]
        tensors[name] = torch.frombuffer(data[first:last], dtype=torch.float32).reshape(entry["shape"])
    if isinstance(about, dict) and isinstance(about.get("provenance"), dict):
        about["fingerprint"] = fingerprint_of(about, tensors)
    header["__metadata__"]["onbrand"] = json.dumps(about)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def with_other_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, put in, taken out, emptied."""
    place = rng.randrange(len(content))
    way = rng.randrange(7)
    if way == 0:
        return content[:place]
    if way == 1:
        return rng.choice(
            [b"", b"\0", b"\xff\xfe", b"<!DOCTYPE html>", b"\0" * len(content), b"version https://git-lfs"]
        )
    if way == 2:
        return content[:place] + rng.randbytes(rng.randrange(1, 64)) + content[place:]
    if way == 3:
        return content[:place] + content[place + rng.randrange(1, 64) :]
    if way == 4:
        return content[place:] + content[:place]
    flipped = bytearray(content)
    for _ in range(1 if way == 5 else rng.randrange(2, 32)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places in it dropped, renamed, doubled or made another thing."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(places_in(value))
        if not places or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(JUNK))
        # a key near the top as often as one of the many numbers far down
        depth = rng.choice(sorted({depth for _, _, depth in places}))
        inside, key, _ = rng.choice([place for place in places if place[2] == depth])
        way = rng.randrange(8)
        if way == 0:
            del inside[key]
        elif way == 1 and isinstance(inside, dict):
            inside[rng.choice(["", "a", LONG, "../a", str(key) + "s", "\ud800", "__class__"])] = inside.pop(key)
        elif way == 2 and isinstance(inside, list):
            inside.insert(key, inside[key])
        elif way == 3 and isinstance(inside[key], int | float):
            inside[key] *= rng.choice([-1, 0, 0.5, 1e9, 1e40])
        elif way == 4 and isinstance(inside[key], str):
            inside[key] = rng.choice(
                [inside[key][:-1], inside[key] + LONG, inside[key] + "\0", inside[key].upper(), "\ud800"]
            )
        else:
            inside[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def places_in(value: Any, depth: int = 0) -> Any:
    """(dict or list, key or index, depth) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key, depth
        yield from places_in(item, depth + 1)


def text_of(value: Any) -> bytes:
    """JSON text, with what no JSON library writes."""
    text = json.dumps(value).encode()
    for mark, content in TEXTS.items():
        text = text.replace(mark.encode(), content)
    return text


def lay(root: Path) -> None:
    """A copy of the archive, and beside it its state as it is written today, a classifier, and latents with sums."""
    shutil.copytree(ARCHIVE, root, dirs_exist_ok=True)
    save_state(root / "sealed", read_state(ARCHIVE / STATE), 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AttributeClassifier({"colour": ["red", "blue"]}, width=4).save(root / "classifier")
        rows = torch.randn(100, 4, 4, 4)
    Store(root / "summed", SUMMED).add(IMAGES, {"mean": rows, "logvar": -rows}, {})
    read_sums(root, False)


def fuzz(root: Path, name: str, count: int, seed: int, full: int = 0) -> dict[str, Any]:
    """Damages one kind of file `count` times; every `full`-th is read in full."""
    kind = KINDS[name]
    file = root / kind.file
    content = file.read_bytes()
    kind.read(root, full > 0)  # whole, it is taken
    file.write_bytes(content)
    result: dict[str, Any] = {"refused": 0, "taken": 0, "faults": []}
    for number in range(count):
        rng = random.Random(f"{seed} {name} {number}")
        file.write_bytes(damaged(content, kind.form, rng))
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            kind.read(root, full > 0 and number % full == 0)
            result["taken"] += 1
        except OnbrandError as error:
            result["refused"] += 1
            message = str(error)
            if "\n" in message or len(message) > LONGEST + 5:
                result["faults"].append(f"{number}: a message of {len(message)} characters: {message[:300]}")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(step.filename).name}:{step.lineno}" for step in last if "onbrand" in step.filename][-3:]
            result["faults"].append(f"{number}: {type(error).__name__} at {' '.join(own)}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    file.write_bytes(content)
    return result


def main(count: int, seed: int = 0, *names: str) -> None:
    def late(*_: object) -> None:
        raise TimeoutError(f"over {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay(root)
        full = max(count // 100, 1) if count >= 1000 else 0
        for name in names or KINDS:
            KINDS[name].read(root, full > 0)  # whatever is imported late is imported before memory is limited
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        print(json.dumps({name: fuzz(root, name, count, seed, full) for name in names or KINDS}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, *sys.argv[3:])
