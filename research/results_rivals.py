"""Ours against its rivals as people fine-tune: LoRAs, few steps, small catalogues; full fine-tuning beside.

Run by research/results.py --only rivals, some four hours on 2 cores with everything to do. The learning rate of every
training is the best of the same three on the validation split. Publishes results-rates.json, results-rivals.json and
results-rivals-<photos>.json.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import garments, shown
from results_catalogue import compared

STARTS = {
    "text-constant": ("text+zeromean",), "mean-window": ("mean",), "zero-snr": ("noise",), "offset-noise": ("noise",),
    "small-alpha": ("noise",), "plain": ("noise", "leak", "mean+zeromean+look2", "text+zeromean+look1"),
}  # fmt: skip
"""Training -> the starts of its rows, the first that by which its rate is chosen. Weights that were trained as usual
have ours and the signal leak besides: they need no training of their own."""
MAIN = ("text-constant", "mean-window", "zero-snr", "plain")
"""Trainings that are compared in more than one way; of the others no image passes every check after CHOSEN steps."""
RATES = {":lora8": ("0.001", "0.003", "0.01"), "": ("0.0002", "0.0006", "0.002")}
"""What learns (a LoRA of rank 8, the whole UNet) -> the learning rates that are tried, for CHOSEN steps."""
CHOSEN = 300
STEPS = {":lora8": (50, 100, 300, 1000), "": (100, 300, 1000)}
LAYERS = (":lora4", ":lora32", ":lora8-attention")
"""For CHOSEN steps, at the rate of ":lora8"."""
AGAIN = (1, 2)
"""Further training seeds of the rows that are quoted."""
FORGOTTEN = ((":lora8", CHOSEN), (":lora8", 1000), ("", CHOSEN), ("", 1000))
"""Trainings that are asked for off-brand images."""
PHOTOS = (50, 200, 1000)
"""Sizes of smaller catalogues."""
FEW = 100
"""Below, no class has captions enough for a start from the text."""
Rates = dict[tuple[str, str], str]


def row(training: str, learns: str, rate: str, steps: int, start: str, seed: int = 0) -> str:
    """A method's name."""
    return f"{training}{learns}:lr{rate}:{steps}" + (f":seed{seed}" if seed else "") + f"/{start}"


def chosen(out: Path) -> Rates:
    """(training, what learns) -> the rate by which most images of the validation requests pass, then the lowest."""
    names = {
        (training, learns, rate): row(training, learns, rate, CHOSEN, f"{starts[0]}@validation")
        for learns, rates in RATES.items()
        for training, starts in STARTS.items()
        for rate in rates
    }
    scores = compared(out, "results-rates", list(names.values()), {})
    best: Rates = {}
    for training in STARTS:
        for learns, rates in RATES.items():
            passing = {rate: scores[names[training, learns, rate]] for rate in rates}
            best[training, learns] = max(rates, key=lambda rate: [passing[rate][n]["value"] for n in ("all", "text")])
    return best


def rows(rates: Rates) -> dict[str, list[str]]:
    """Question -> its rows, ours first."""
    questions = {}
    for learns, counts in STEPS.items():
        what = "A LoRA" if learns else "Full fine-tuning"
        for steps in counts:
            questions[f"{what}, {steps:,} steps"] = [
                row(training, learns, rates[training, learns], steps, start)
                for training, starts in STARTS.items()
                if steps == CHOSEN or training in MAIN
                for start in starts
            ]
    for layers in LAYERS:
        questions[f"A LoRA, {layers[1:]}"] = [
            row(training, layers, rates[training, ":lora8"], CHOSEN, STARTS[training][0]) for training in MAIN
        ]
    for seed in AGAIN:
        for steps in (CHOSEN, 1000):
            questions[f"A LoRA, {steps:,} steps, training seed {seed}"] = [
                row(training, ":lora8", rates[training, ":lora8"], steps, STARTS[training][0], seed)
                for training in MAIN
            ]
    questions["What the stock model knew, after it"] = [
        f"{row(training, learns, rates[training, learns], steps, 'noise')}@world"
        for learns, steps in FORGOTTEN
        for training in MAIN
    ] + ["stock/noise@world"]
    return questions


def part(out: Path, count: int) -> Path:
    """A folder of `count` images of the catalogue, evenly spread over it."""
    images, entries = garments("train")
    places = np.linspace(0, len(entries) - 1, count).round().astype(int).tolist()
    listed = [
        {"file_name": f"{i:05d}.png", "text": entries[i]["text"], "class": entries[i]["class"],
         "attributes": shown(entries[i])}
        for i in places
    ]  # fmt: skip
    return write_dataset(out, {f"{i:05d}.png": partial(images.__getitem__, i) for i in places}, listed)


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    rates = chosen(out)
    questions = rows(rates)
    compared(out, "results-rivals", [name for names in questions.values() for name in names], questions)
    for count in PHOTOS:
        starts = {training: STARTS[training][0] for training in MAIN}
        pairs = {"mean-constant" if count < FEW and name == "text-constant" else name: name for name in starts}
        names = [
            row(training, ":lora8", rates[same, ":lora8"], CHOSEN, start)
            for training, same in pairs.items()
            for start in (["mean+zeromean"] if training == "mean-constant" else [starts[same]])
        ]
        names.append(row("plain", ":lora8", rates["plain", ":lora8"], CHOSEN, "mean+zeromean+look2"))
        home = out / f"photos-{count}"
        photos = part(home / "photos", count)
        compared(home, f"results-rivals-{count}", names, {f"{count:,} images": names}, photos=photos)
