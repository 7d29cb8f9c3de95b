"""What the experiments on the catalogue share: settings, requests, held-out images, one folder of trainings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

import onbrand
from demo import asked
from onbrand import api
from onbrand.datasets import garments
from onbrand.options.compare import CompareSettings
from results_page import publish

CONFIG = CompareSettings(
    max_train_steps=600,
    train_batch_size=16,
    learning_rate=6e-4,
    ema_decay=0.98,
    mixed_precision="bf16",
    guidance_scale=1.5,
    batch_size=24,
)
HELD = 240
"""Held-out images."""
KINDS = {"garment": "garment", "figure": "person"}
"""View -> the kind of class."""


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The same request as an image of the other kind: a garment's with the class of people, and the reverse."""
    gender, kind = row["class"].split()
    return row | {"class": f"{gender} {'person' if kind == 'garment' else 'garment'}"}


def captioned(split: str = "train", count: int = 48) -> list[dict[str, Any]]:
    """Captions of a split, evenly spread over it, one seed each."""
    rows = garments.garments(split, images=False)[1]
    few = rows[:: len(rows) // count][:count]
    return [{"prompt": row["text"], "class": row["class"], "seed": i, "attributes": garments.shown(row)}
            for i, row in enumerate(few)]  # fmt: skip


def off_brand(count: int = 192) -> list[dict[str, Any]]:
    """The stock model's own world: captions of garments and figures on any background, anywhere in the frame."""
    sys.path.insert(0, str(Path(__file__).parent / "tiny"))
    from world import draw

    _, captions, truths = draw(2 * count, 9, split="test")
    seen = [(text, truth) for text, truth in zip(captions, truths, strict=True) if truth["view"] != "object"]
    return [
        {"prompt": text, "class": f"{truth.get('gender', 'female')} {KINDS[truth['view']]}", "seed": i,
         "attributes": {name: value for name, value in truth.items() if name != "ground"}}
        for i, (text, truth) in enumerate(seen[:count])
    ]  # fmt: skip


def inputs(out: Path) -> dict[str, str]:
    """Write the sets of requests and the held-out images; name -> file."""
    sets = {"ten": asked(10), "five": asked(5), "two": asked(2), "one": asked(1), "captions": captioned()}
    sets["validation"] = captioned("validation", 96)
    sets["swapped"] = [swapped(row) for row in asked(1)]
    if not (out / "world.jsonl").exists():  # drawing them takes seconds
        sets["world"] = off_brand()
    for name, rows in sets.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (out / "held" / "metadata.jsonl").exists():
        garments.write_garments(out / "held", "test", HELD)
    files = {name: str(out / f"{name}.jsonl") for name in (*sets, "world") if name != "ten"}
    return files | {"held": str(out / "held" / "metadata.jsonl")}


def prepared(out: Path, model: str = "tiny", photos: Path | None = None) -> dict[str, str]:
    """`inputs`, and the brand where it is not there yet. photos: a part of the catalogue; None: all of it."""
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".prepared.lock"):  # of several processes that begin at once, one prepares
        if not (out / "brand" / "prior.safetensors").exists():
            split = None if photos else "train"
            api.fit(photos or garments.garment_folder(), model, out / "brand", split=split)
        return inputs(out)


def compared(
    out: Path, name: str, methods: Sequence[str], questions: Mapping[str, list[str]], config: CompareSettings = CONFIG,
    figures: Mapping[str, str] | None = None, model: str = "tiny", photos: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare the methods in `out`, from what is finished there on; publish docs/research/`name`.json; the table.

    figures: of the comparison -> name under docs/images; photos: as `prepared` takes them."""
    sets = prepared(out, model, photos)
    onbrand.compare(
        photos or garments.garment_folder(),
        model,
        out / "compare",
        methods=list(methods),
        prompts=out / "ten.jsonl",
        prompt_sets=sets,
        reference_images=out / "held",
        prior=out / "brand",
        split=None if photos else "train",
        attributes="garments",
        clip="garments-clip",
        questions=dict(questions),
        **vars(config),
    )
    return publish(out / "compare", name, figures)
