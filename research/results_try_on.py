"""The paper's Fig. 5 on the catalogue: try-on by ControlNet, plain against window against constant gain.

Run by research/results.py --only try-on. Writes docs/research/results-try-on.json and its figure.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

import onbrand
from onbrand import api
from onbrand.comparison.tables import grid
from onbrand.data.conditioning import CONDITION_BACKGROUND
from onbrand.datasets import try_on
from results_catalogue import CONFIG
from results_page import DOCS, publish

GARMENTS, SEEDS = 32, 3
"""Held-out garments, each under so many seeds."""
METHODS = [f"{training}:controlnet/{start}" for training, start in (
    ("plain", "noise"), ("plain", "mean"), ("mean-window", "mean"), ("mean-constant", "mean"),
    ("mean-constant", "mean+overlay"), ("text-constant", "text+zeromean"))]  # fmt: skip
QUESTIONS = {
    "Does the brand's look stay? (Fig. 5)": [METHODS[3], METHODS[2], METHODS[1], METHODS[0]],
    "The start that reads the text": [METHODS[5], METHODS[3]],
}


def inputs(out: Path) -> tuple[Path, Path, Path]:
    """Write the people to learn from, those held out, and the requests; their places."""
    people, held, asked = out / "people", out / "held", out / "requests.jsonl"
    for folder, split in ((people, "train"), (held, "test")):
        if not (folder / "metadata.jsonl").exists():
            try_on.write_try_on(folder, split)
    rows = [json.loads(line) for line in (held / "metadata.jsonl").read_text().splitlines()]
    some = rows[:: len(rows) // GARMENTS][:GARMENTS]
    lines = [
        {"prompt": row["text"], "class": row["class"], "attributes": row["attributes"], "seed": seed,
         "conditioning": str(Path("held", row["conditioning_file_name"]))}
        for row in some for seed in range(SEEDS)
    ]  # fmt: skip
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return people, held, asked


def given(asked: Path, folder: Path) -> Path:
    """The control images as the network is given them, in the requests' order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, line in enumerate(asked.read_text().splitlines()):
        cut = Image.open(asked.parent / json.loads(line)["conditioning"])
        background = Image.new("RGBA", cut.size, (*CONDITION_BACKGROUND, 255))
        Image.alpha_composite(background, cut).convert("RGB").save(folder / f"{i:05d}.png")
    return folder


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    people, held, asked = inputs(out)
    if not (out / "brand" / "prior.safetensors").exists():
        api.fit(people, "tiny", out / "brand")
    told = onbrand.compare(
        people,
        "tiny",
        out / "compare",
        methods=METHODS,
        prompts=asked,
        reference_images=held,
        prior=out / "brand",
        attributes="garments",
        clip="garments-clip",
        questions=QUESTIONS,
        **vars(CONFIG),
    )
    publish(out / "compare", "results-try-on")
    shown = [out / "compare" / told["rows"][METHODS[i]]["images"] for i in (0, 2, 3)]
    grid([given(asked, out / "given"), *shown], DOCS / "images" / "results-try-on.webp")
