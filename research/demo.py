"""`make demo`: the whole job on an embedded catalogue, from a LoRA as usual to a page that shows what changed."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onbrand import api
from onbrand.datasets.garments import caption, descriptions, garment_folder, write_garments

STEPS, BATCH, RANK, GUIDANCE = 160, 16, 8, 1.5
REAL = 48
"""Held-out images that the page shows beside the generated ones, and that the control is started from."""

ROWS = {
    "before": ("plain", "noise", 0, "A LoRA trained as usual, started from noise",
               "The usual way. Backgrounds, places, crops come out as chance has it."),
    "mean": ("plain", "mean", 0, "The same LoRA, started from the brand's mean",
             "Nothing is trained anew: only the start of sampling differs (the paper's offset inference)."),
    "look": ("plain", "mean", 2, "The same LoRA and mean, and two looks ahead",
             "Ours, without captions: the network is asked twice what it would draw; sampling starts from what of its "
             "answer lies in the brand's components."),
    "after": ("plain", "text", 1, "The same LoRA, with onbrand's start",
              "Ours, nothing trained anew: the mean that the words predict, and a look ahead. It is generate's default "
              "for a LoRA or checkpoint of yours."),
    "trained": ("onbrand", "text", 0, "A LoRA trained and started with onbrand",
                "The same images, steps and seeds; training had the start that sampling has."),
    "control": ("plain", "image", 0, "The usual LoRA, started from real images' own latents",
                "A control, not a method: the start already holds the image. The prompts are theirs."),
}  # fmt: skip
"""Row of the page: the run its weights come from, its start, its looks ahead, its caption and its sentence."""


def asked(seeds: int = 1) -> list[dict[str, Any]]:
    """The catalogue's 24 descriptions as garment and as figure, women's and men's in turn, under `seeds` seeds each."""
    by_gender = {name: [d for d in descriptions() if d["gender"] == name] for name in ("female", "male")}
    order = [d for pair in zip_longest(*by_gender.values()) for d in pair if d]
    rows = []
    for seed in range(seeds):
        for i, told in enumerate(order):
            for view, kind in (("garment", "garment"), ("figure", "person")):
                name = f"{told['gender']} {kind}"
                shows = told["attributes"] | {"gender": told["gender"], "view": view}
                rows.append({"prompt": caption(name, told["text"]), "class": name, "seed": 100 * seed + i,
                             "attributes": shows})  # fmt: skip
    return rows


def plan(out: Path) -> None:
    """What the page is to say beside what it reads off the folders."""
    rows = [{"name": name, "caption": words, "sentence": more} for name, (*_, words, more) in ROWS.items()]
    rows.append(
        {"name": "real", "caption": "Real images of the brand", "sentence": "Held out: nothing learnt from them."}
    )
    content = {
        "title": "onbrand on a catalogue of 4,020 images",
        "lead": "A LoRA trained as usual, the same prompts and seeds. What changed is where sampling starts.",
        "rows": rows, "before": "before", "after": "after", "real": "real",
        "numbers": ["background", "text", "all"],
        "notes": [
            "The model is onbrand-tiny: the real classes of Stable Diffusion at 1/150 of its size, a stand-in that a "
            "laptop can train. It has never seen the brand's place, pose or light.",
            "The catalogue is drawn from CC0 meshes: garments alone and on people, as in the paper.",
            "The 24 descriptions were written for this project; no image in the catalogue belongs to them.",
            "Where a start holds anything, its noise has no mean of its own, which the network would read as a tint.",
            f"Either LoRA has rank {RANK} and {STEPS} steps of {BATCH} images.",
        ],
        "runs": {"plain": "as usual", "onbrand": "with onbrand"},
        "commands": ["make demo"],
    }  # fmt: skip
    (out / "demo.json").write_text(json.dumps(content, indent=1))


def jobs(out: Path) -> list[tuple[str, Callable[[], object]]]:
    """What is done, in words and as functions, in this order."""
    prior, real, requests = out / "brand", out / "images" / "real", out / "prompts.jsonl"
    photos = garment_folder()
    todo: list[tuple[str, Callable[[], object]]] = [
        ("fitting the brand's prior", lambda: api.fit(photos, "tiny", prior, split="train")),
        ("asking whether noise is a wrong start", lambda: api.diagnose(prior)),
    ]
    for name, start in (("plain", "noise"), ("onbrand", "text")):
        train = partial(
            api.train,
            photos,
            "tiny",
            out / "runs" / name,
            prior=prior,
            split="train",
            start=start,
            method="lora",
            rank=RANK,
            max_train_steps=STEPS,
            train_batch_size=BATCH,
            learning_rate=3e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=20,
            checkpointing_steps=50,
            mixed_precision="bf16",
        )
        todo.append(
            ("training a LoRA as usual" if name == "plain" else "training a LoRA with the brand's start", train)
        )
    todo.append(("writing real images to compare with", lambda: write_garments(real, "test", REAL)))
    for row, (run, start, looks, words, _) in ROWS.items():
        generate = partial(
            api.generate,
            real / "metadata.jsonl" if start == "image" else requests,
            model=out / "runs" / run,
            output_dir=out / "images" / row,
            prior=prior,
            start=start,
            look_ahead=looks,
            guidance_scale=GUIDANCE,
            batch_size=24,
            trace=1,
        )
        todo.append((f"images: {words[:1].lower()}{words[1:]}", generate))
    for row in (*ROWS, "real"):
        check = partial(api.check, out / "images" / row, photos, split="train", prior=prior, attributes="garments")
        todo.append((f"checking {row}", check))
    todo.append(("writing the page", lambda: api.report(out)))
    return todo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", UserWarning)  # a start that the weights were not trained for is what is shown here
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked()))
    plan(out)
    todo = jobs(out)
    for number, (words, job) in enumerate(todo, 1):
        tqdm.write(f"\n[{number}/{len(todo)}] {words} ({time.time() - began:.0f} s so far)")
        job()
    print(f"\nDone in {time.time() - began:.0f} s. Open {out / 'report.html'}")


if __name__ == "__main__":
    main()
