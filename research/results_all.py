"""Every row on the catalogue: the paper, its rivals and ours, by requests, seeds, steps, solvers and guidance.

Run by research/results.py --only all; some four hours on 2 cores with everything to do. Writes
docs/research/results-all.json.
"""

from __future__ import annotations

from pathlib import Path

from results_catalogue import compared

LONG = 2000
"""Optimiser steps of the longest training."""

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


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    compared(out, "results-all", METHODS, QUESTIONS)
