"""The experiment of docs/results.md: the paper, its rivals and ours on the catalogue, by `onbrand compare`.

Resumable, and shared by as many processes as are started; with everything finished it writes the page anew in
minutes. docs/results.md, docs/results.json and docs/images/results-*.png are written by it alone; its words are in
tools/results_words.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from demo import asked
from onbrand import api
from onbrand.api.methods import CompareConfig
from onbrand.data import catalogue
from onbrand.data.garments import garments

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = CompareConfig(fine_tuning=600, batch=16, lr=6e-4, ema=0.98, precision="bf16", guidance=1.5, at_a_time=24)
HELD, LONG = 240, 2000
"""Held-out pictures; optimiser steps of the longest training."""

CORE = ["plain/noise", "plain/mean", "plain/text", "mean-window/mean", "mean-constant/mean", "text-constant/text"]
"""Under ten seeds."""
CONTROL = ["plain/image@held", "stock/image@held"]
UNTRAINED = ["stock/noise@two", "stock/mean@two", "stock/text@two"]
PAPER = [
    "plain/noise@two", "plain/mean@two", "plain/pca1@two", "plain/pca3@two", "plain/pca16@two", "plain/image3@held",
    "mean-window/mean@two", "mean-window/noise@two", "pca1-window:300/pca1@two", "pca3-window:300/pca3@two",
    "pca16-window:300/pca16@two", "pca1-sampled-window:300/pca1@two", "pca3-sampled-window:300/pca3@two",
    "pca16-sampled-window:300/pca16@two", "small-alpha/noise@two",
]  # fmt: skip
RIVALS = [
    "offset-noise/noise@two", "zero-snr/noise@two", "plain/leak@two", "plain/leak-dct@two", "plain/noise+pasted@two",
]  # fmt: skip
OURS = [
    "plain/text@two", "plain/text-rr@two", "plain/text-cca@two", "plain/text+drawn@two", "text-window/text@two",
    "mean-window/mean+handoff@two", "text-window/text+handoff@two", "mean-constant/mean@two",
    "mean-constant/text@two", "mean-constant/mean+trailing@two", "zero-constant/zero@two", "text-constant/text@two",
    f"text-constant:{LONG}/text@two", f"mean-constant:{LONG}/mean@two", f"plain:{LONG}/noise@two",
]  # fmt: skip
SEEDS = [f"{name}:seed{seed}/{start}@two" for seed in (1, 2)
         for name, start in (("plain", "noise"), ("mean-window", "mean"), ("mean-constant", "mean"))]  # fmt: skip
CURVE = [f"{name}:{steps}/{start}@two" for name, start in (("mean-window", "mean"), ("mean-constant", "mean"),
         ("text-constant", "text")) for steps in (100, 300)]  # fmt: skip
SWAPPED = ["plain/mean@swapped", "mean-window/mean@swapped", "mean-constant/mean@swapped"]
CAPTIONS = ["plain/noise@captions", "plain/mean@captions", "text-constant/text@captions"]
STEPS = [f"{method}+{steps}+trailing@one" for steps in (2, 4, 8, 12, 20, 50) for method in (
    "plain/noise", "plain/mean", "mean-window/mean", "mean-constant:t999/mean")]  # fmt: skip
SOLVERS = [f"{method}+{steps}+{solver}+trailing@one" for method in ("mean-window/mean", "mean-constant:t999/mean")
           for solver in ("dpm2m", "unipc", "eulera") for steps in (4, 8, 20)]  # fmt: skip
GUIDANCE = [f"{method}+g{scale}@one" for method in ("plain/noise", "plain/mean", "text-constant/text")
            for scale in ("1", "3", "7.5")]  # fmt: skip
METHODS = [*CORE, *CONTROL, *UNTRAINED, *PAPER, *RIVALS, *OURS, *CURVE, *SWAPPED, *CAPTIONS, *SEEDS, *STEPS, *SOLVERS,
           *GUIDANCE]  # fmt: skip
QUESTIONS = {
    "Is the class mean a better start than noise, without training for it? (Fig. 1)": ["plain/mean", "plain/noise"],
    "Is it so on training captions? (Fig. 1)": ["plain/mean@captions", "plain/noise@captions"],
    "PCA starts, and real pictures projected (Figs. 2, 3)": [
        "plain/mean@two", "plain/pca1@two", "plain/pca3@two", "plain/pca16@two"],
    "The other kind's mean (Fig. 4)": ["plain/mean@swapped", "mean-window/mean@swapped", "mean-constant/mean@swapped"],
    "Does training with the start help? (Table 1)": ["mean-window/mean", "plain/mean", "plain/noise"],
    "PCA-K offset training": [
        "mean-window:300/mean@two", "pca1-window:300/pca1@two", "pca3-window:300/pca3@two",
        "pca16-window:300/pca16@two", "pca1-sampled-window:300/pca1@two", "pca3-sampled-window:300/pca3@two",
        "pca16-sampled-window:300/pca16@two"],
    "Ours against the paper's best": ["text-constant/text", "mean-constant/mean", "mean-window/mean", "plain/text"],
    "The exact hand-off": [
        "mean-window/mean+handoff@two", "mean-window/mean@two", "mean-constant/mean@two"],
    "Is it the gain, or the mean?": ["mean-constant/mean@two", "zero-constant/zero@two", "mean-window/mean@two"],
    "The start that reads the text": [
        "plain/text@two", "plain/text-rr@two", "plain/text-cca@two", "plain/text+drawn@two", "plain/mean@two"],
    "Without any training": ["stock/text@two", "stock/mean@two", "stock/noise@two"],
    "Rivals": [
        "text-constant/text@two", "mean-constant/mean@two", "offset-noise/noise@two", "zero-snr/noise@two",
        "small-alpha/noise@two", "plain/leak@two", "plain/leak-dct@two", "plain/noise+pasted@two"],
}  # fmt: skip


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The same request as a picture of the other kind: a garment's with the class of people, and the reverse."""
    gender, kind = row["class"].split()
    return row | {"class": f"{gender} {'person' if kind == 'garment' else 'garment'}"}


def captioned(count: int = 48) -> list[dict[str, Any]]:
    """Training captions, evenly spread over the catalogue, one seed each."""
    rows = garments("train", pictures=False)[1]
    few = rows[:: len(rows) // count][:count]
    return [{"prompt": row["text"], "class": row["class"], "seed": i, "attributes": catalogue.shown(row)}
            for i, row in enumerate(few)]  # fmt: skip


def inputs(out: Path) -> dict[str, str]:
    """Write the sets of requests and the held-out pictures; name -> file."""
    out.mkdir(parents=True, exist_ok=True)
    sets = {"ten": asked(10), "two": asked(2), "one": asked(1), "captions": captioned()}
    sets["swapped"] = [swapped(row) for row in asked(1)]
    for name, rows in sets.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (out / "held" / "metadata.jsonl").exists():
        catalogue.write_garments(out / "held", "test", HELD)
    files = {name: str(out / f"{name}.jsonl") for name in sets if name != "ten"}
    return files | {"held": str(out / "held" / "metadata.jsonl")}


def publish(out: Path) -> None:
    """docs/results.md, results.json and their pictures, from what `compare` wrote and the words beside this script."""
    told = json.loads((out / "compare" / "compare.json").read_text())
    (DOCS / "results.json").write_text(json.dumps(told["methods"], indent=1) + "\n")
    text = (out / "compare" / "compare.md").read_text().split("\n", 1)[1]
    for figure in sorted((out / "compare" / "figures").glob("*.png")):
        shutil.copy2(figure, DOCS / "images" / f"results-{figure.name}")
        text = text.replace(f"(figures/{figure.name})", f"(images/results-{figure.name})")
    words = Path(__file__).with_name("results_words.md").read_text().rstrip()
    (DOCS / "results.md").write_text(f"{words}\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--threads", type=int, default=1)
    out = parser.parse_args().out
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch.set_num_threads(parser.parse_args().threads)
    sets = inputs(out)
    photos, prompts = catalogue.garment_folder(), out / "ten.jsonl"
    if not (out / "brand" / "prior.safetensors").exists():
        api.fit(photos, "tiny", out / "brand", split="train")
    api.compare(photos, "tiny", out / "compare", methods=METHODS, prompts=prompts, sets=sets, held=out / "held",
                prior=out / "brand", split="train", reader="garments", clip="garments-clip", questions=QUESTIONS,
                config=CONFIG)  # fmt: skip
    publish(out)


if __name__ == "__main__":
    main()
