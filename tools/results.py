"""The experiment of docs/results.md: the paper, its rivals and ours on the catalogue, by `onbrand compare`.

Resumable, and shared by as many processes as are started; with everything finished it writes the page anew in
minutes. docs/results*.md, docs/results*.json and docs/images/results-* are written by it alone; its words are in
tools/results*_words.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import results_photos
import results_try_on
from demo import asked
from onbrand import api
from onbrand.api.methods import CompareConfig
from onbrand.data import catalogue
from onbrand.data.garments import garments
from onbrand.report.versus import figure_of
from results_page import DOCS, publish

CONFIG = CompareConfig(fine_tuning=600, batch=16, lr=6e-4, ema=0.98, precision="bf16", guidance=1.5, at_a_time=24)
HELD, LONG = 240, 2000
"""Held-out pictures; optimiser steps of the longest training."""

CORE = ["plain/noise", "plain/mean", "plain/text", "mean-window/mean", "mean-constant/mean", "text-constant/text",
        "plain/text+zeromean", "text-constant/text+zeromean"]  # fmt: skip
"""Under ten seeds."""
CONTROL = ["plain/image@held"]
UNTRAINED = ["stock/noise@two", "stock/mean@two", "stock/text@two"]
PAPER = ["plain/noise@two", "plain/mean@two", "plain/pca1@two", "plain/pca3@two", "plain/pca16@two",
         "plain/image3@held", "mean-window/mean@two", "mean-window/noise@two"]  # fmt: skip
RIVALS = ["offset-noise/noise@two", "zero-snr/noise@two", "small-alpha/noise@two", "plain/leak@two",
          "plain/leak-dct@two", "plain/noise+pasted@two"]  # fmt: skip
OURS = ["plain/text@two", "plain/text-rr@two", "plain/text-cca@two", "plain/text+drawn@two",
        "mean-window/mean+handoff@two", "mean-constant/mean@two", "mean-constant/text@two",
        "mean-constant/mean+trailing@two", "zero-constant/zero@two", "text-window/text@two",
        "text-window/text+handoff@two", "text-constant/text@two"]  # fmt: skip
CURVE = [f"{name}:{steps}/{start}@two" for name, start in (("mean-window", "mean"), ("mean-constant", "mean"),
         ("text-constant", "text")) for steps in (100, 300)]  # fmt: skip
EVEN = [f"{name}+zeromean@two" for name in ("plain/noise", "plain/mean", "plain/text", "mean-window/mean",
        "mean-constant/mean", "text-constant/text")]  # fmt: skip
V = ["text-constant:v/text@two", "mean-constant:v/mean@two", "text-constant:v/text+zeromean@two"]
SWAPPED = ["plain/mean@swapped", "mean-window/mean@swapped", "mean-constant/mean@swapped"]
CAPTIONS = ["plain/noise@captions", "plain/mean@captions", "text-constant/text@captions"]
SEEDS = [f"{name}:300:seed{seed}/{start}@one" for seed in (0, 1, 2)
         for name, start in (("plain", "noise"), ("mean-window", "mean"), ("mean-constant", "mean"))]  # fmt: skip
LONGEST = [f"text-constant:{LONG}/text@two", f"text-constant:{LONG}/text+zeromean@two",
           f"text-constant:{LONG}:v/text+zeromean@two"]  # fmt: skip
PCA = ["pca1-window/pca1@two", "pca3-window/pca3@two", "pca16-window/pca16@two", "pca3-sampled-window/pca3@two"]
GUIDED = [f"{method}+g{scale}@one" for scale in (1, 3, 7.5)
          for method in ("plain/noise", "plain/mean", "mean-window/mean", "text-constant/text+zeromean")]  # fmt: skip
KEY = ["plain/noise", "plain/mean", "zero-snr/noise", "mean-window/mean", "mean-constant:v/mean",
       "text-constant:v/text"]  # fmt: skip
STEPS = [f"{method}+{steps}{solver}+trailing@one" for solver in ("", "+dpm2m", "+unipc", "+eulera")
         for method in KEY for steps in (2, 4, 8, 12, 20, 50)]  # fmt: skip
AGAIN = [f"{name}:seed{seed}/{start}@two" for seed in (1, 2) for name, start in (
         ("plain", "noise"), ("mean-window", "mean"), ("mean-constant", "mean"))]  # fmt: skip
LORA = [
    f"text-constant{made}:{steps}/text+zeromean@two" for steps in (100, 300, 1000) for made in (":lora8:lr0.003", "")
] + ["text-constant:lora32-attention:lr0.003:300/text+zeromean@two"]
METHODS = [*CORE, *CONTROL, *UNTRAINED, *PAPER, *OURS, *RIVALS, *SWAPPED, *CAPTIONS, *V, *EVEN, *LONGEST, *CURVE,
           *SEEDS, "plain:v/noise@two", "plain/noise+trailing@two", *PCA, *GUIDED, *AGAIN, *LORA, *STEPS]  # fmt: skip
"""In the order in which they are worked off."""
QUESTIONS = {
    "Is the class mean a better start than noise, without training for it? (Fig. 1)": ["plain/mean", "plain/noise"],
    "Is it so on training captions? (Fig. 1)": ["plain/mean@captions", "plain/noise@captions"],
    "PCA starts (Figs. 2, 3)": [
        "plain/mean@two", "plain/pca1@two", "plain/pca3@two", "plain/pca16@two"],
    "The other kind's mean (Fig. 4)": ["plain/mean@swapped", "mean-window/mean@swapped", "mean-constant/mean@swapped"],
    "Does training with the start help? (Table 1)": ["mean-window/mean", "plain/mean", "plain/noise"],
    "Ours against the paper's best": [
        "text-constant/text+zeromean", "text-constant/text", "mean-constant/mean", "mean-window/mean",
        "plain/text+zeromean", "plain/text"],
    "The exact hand-off": [
        "mean-window/mean+handoff@two", "mean-window/mean@two", "mean-constant/mean@two"],
    "Is it the gain, or the mean?": ["mean-constant/mean@two", "zero-constant/zero@two", "mean-window/mean@two"],
    "The start that reads the text": [
        "plain/text@two", "plain/text-rr@two", "plain/text-cca@two", "plain/text+drawn@two", "plain/mean@two"],
    "The noise without its mean": ["text-constant/text+zeromean", "text-constant/text"],
    "The noise without its mean, usual weights": ["plain/text+zeromean", "plain/text"],
    "Without any training": ["stock/text@two", "stock/mean@two", "stock/noise@two"],
    "Constant gain with v-prediction": [
        "text-constant:v/text@two", "mean-constant:v/mean@two", "text-constant/text@two", "zero-snr/noise@two"],
    "Rivals": [
        "text-constant/text+zeromean@two", "text-constant/text@two", "mean-constant/mean@two",
        "offset-noise/noise@two", "zero-snr/noise@two", "plain:v/noise@two", "small-alpha/noise@two", "plain/leak@two",
        "plain/leak-dct@two", "plain/noise+pasted@two"],
    "PCA-K offset training": [
        "mean-window/mean@two", "pca1-window/pca1@two", "pca3-window/pca3@two", "pca16-window/pca16@two",
        "pca3-sampled-window/pca3@two"],
    "A LoRA of a tenth of the size, after 1,000 and 300 steps": [
        "text-constant:1000/text+zeromean@two", "text-constant:lora8:lr0.003:1000/text+zeromean@two",
        "text-constant:300/text+zeromean@two", "text-constant:lora8:lr0.003:300/text+zeromean@two"],
    "By guidance": [
        f"{method}+g{scale}@one" for method in ("text-constant/text+zeromean", "mean-window/mean")
        for scale in (1, 3, 7.5)],
}  # fmt: skip


SHOWN = {"plain/noise": "fine-tuned as usual, started from noise",
         "text-constant/text+zeromean": "fine-tuned and started with onbrand"}  # fmt: skip
"""The README's picture."""


README = (
    ("real", "", "real pictures, held out"), ("plain/noise", "as usual", "noise (as usual)"),
    ("plain/mean", "as usual", "class mean (the paper)"),
    ("plain/text+zeromean", "as usual", "mean given the prompt, noise of zero mean (ours)"),
    ("mean-window/mean", "mean offset, window (the paper)", "class mean"),
    ("mean-constant/mean", "mean offset, constant gain (ours)", "class mean"),
    ("text-constant/text+zeromean", "text offset, constant gain (ours)", "mean given the prompt, noise of zero mean"),
    ("plain/image@held", "as usual", "each real picture's own latent (control)"),
)  # fmt: skip
"""The README's table: method, training, start."""


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


def readme(table: dict[str, Any]) -> None:
    """The README's table, between its two marks."""
    head = "| training | start | text | ground | pass every check | variety |\n|---|---|---|---|---|---|\n"
    lines = []
    for name, training, start in README:
        cells = [figure_of(table[name][score]) for score in ("text", "ground", "all", "diversity")]
        lines.append(f"| {training} | {start} | {' | '.join(cells)} |\n")
    path = DOCS.parent / "README.md"
    before, _, rest = path.read_text().partition("<!-- results -->\n")
    _, _, after = rest.partition("<!-- /results -->")
    path.write_text(f"{before}<!-- results -->\n{head}{''.join(lines)}<!-- /results -->{after}")


def before_after(out: Path, path: Path, columns: int = 6, lines: int = 2) -> None:
    """The README's picture: the usual way beside ours, equal prompts and seeds, the first requests, not chosen."""
    rows = json.loads((out / "compare" / "compare.json").read_text())["rows"]
    font, head, gap, side = ImageFont.load_default(22), 44, 32, 128
    sheet = Image.new("RGB", (2 * columns * side + gap, head + lines * side), "white")
    for panel, (name, words) in enumerate(SHOWN.items()):
        left = panel * (columns * side + gap)
        ImageDraw.Draw(sheet).text((left + 4, 8), words, "black", font)
        for i in range(columns * lines):
            picture = Image.open(out / "compare" / rows[name]["pictures"] / f"{i:05d}.png")
            sheet.paste(picture, (left + i % columns * side, head + i // columns * side))
    ImageDraw.Draw(sheet).line((columns * side + gap // 2, 0, columns * side + gap // 2, sheet.height), "gray")
    sheet.save(path, optimize=True)


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
    table = publish(out / "compare", "results")
    readme(table)
    before_after(out, DOCS / "images" / "before-after.png")
    results_photos.run(out / "photos", CONFIG)
    results_try_on.run(out / "try-on", CONFIG)


if __name__ == "__main__":
    main()
