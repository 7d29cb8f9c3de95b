"""Ours against its rivals as people fine-tune: LoRAs, few steps, small catalogues; full fine-tuning beside.

Run by research/results.py --only rivals-NAME, NAME one of PARTS or few, half an hour or less each on 2 cores. The
learning rate of every training is the best of the same three on the validation split. Publishes
results-rates-<what learns>.json and results-rivals-<part>.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import garments, shown
from results_catalogue import compared
from results_page import DATA, DOCS, IMAGES, before_after

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
STEPS = {":lora8": (300, 1000, 100, 50), "": (300, 1000, 100)}
LAYERS = (":lora4", ":lora32", ":lora8-attention")
"""For CHOSEN steps, at the rate of ":lora8"."""
QUOTED = (
    ("text-constant", "text+zeromean"), ("plain", "text+zeromean+look1"), ("mean-window", "mean"),
    ("zero-snr", "noise"), ("plain", "noise"),
)  # fmt: skip
"""README's rows: training, start."""
SHOWN = {
    "noise": "a LoRA trained as usual, started from noise",
    "text+zeromean+look1": "the same LoRA, with onbrand's start",
}
"""README's image: starts of the plain LoRA."""
AGAIN = (1, 2)
"""Further training seeds of QUOTED."""
FORGOTTEN = ((":lora8", CHOSEN), (":lora8", 1000), ("", CHOSEN), ("", 1000))
"""Trainings that are asked for off-brand images."""
PHOTOS = (50, 200, 1000)
"""Sizes of smaller catalogues."""
FEW = 100
"""Below, no class has captions enough for a start from the text."""


def row(training: str, learns: str, rate: str, steps: int, start: str, seed: int = 0) -> str:
    """A method's name; 240 images, unless the start names other requests."""
    seeded = f":seed{seed}" if seed else ""
    return f"{training}{learns}:lr{rate}:{steps}{seeded}/{start if '@' in start else f'{start}@five'}"


def chosen(out: Path, learns: str = ":lora8") -> dict[str, str]:
    """Training -> the rate by which most validation images pass, then show their text; the lowest of such.

    What is published is taken; delete the file to have it made again."""
    file = f"results-rates-{learns.strip(':') or 'full'}"
    names = {
        (training, rate): row(training, learns, rate, CHOSEN, f"{starts[0]}@validation")
        for training, starts in STARTS.items()
        for rate in RATES[learns]
    }
    published = DOCS / DATA / f"{file}.json"
    scores = json.loads(published.read_text()) if published.exists() else compared(out, file, list(names.values()), {})

    def passing(training: str, rate: str) -> list[float]:
        return [scores[names[training, rate]][score]["value"] for score in ("all", "text")]

    return {training: max(RATES[learns], key=partial(passing, training)) for training in STARTS}


def trained(out: Path, learns: str, steps: int) -> dict[str, list[str]]:
    """Question -> its rows, ours first: a part."""
    rates = chosen(out, learns)
    rows = [
        row(training, learns, rates[training], steps, start)
        for training, starts in STARTS.items()
        if steps == CHOSEN or training in MAIN
        for start in starts
    ]
    return {f"{'A LoRA' if learns else 'Full fine-tuning'}, {steps:,} steps": rows}


def layers(out: Path) -> dict[str, list[str]]:
    """LoRAs of other ranks, of attention alone."""
    rates = chosen(out)
    return {
        f"A LoRA, {what[1:]}": [row(one, what, rates[one], CHOSEN, STARTS[one][0]) for one in MAIN] for what in LAYERS
    }


def seeds(out: Path) -> dict[str, list[str]]:
    """Further training seeds of the rows that are quoted."""
    rates = chosen(out)
    return {
        f"A LoRA, training seed {seed}": [
            row(training, ":lora8", rates[training], CHOSEN, start, seed) for training, start in QUOTED
        ]
        for seed in AGAIN
    }


def forgotten(out: Path) -> dict[str, list[str]]:
    """The stock model's own world, after fine-tuning."""
    rates = {learns: chosen(out, learns) for learns in RATES}
    rows = [row(one, learns, rates[learns][one], steps, "noise@world") for learns, steps in FORGOTTEN for one in MAIN]
    return {"What the stock model knew, after it": ["stock/noise@world", *rows]}


PARTS: dict[str, Callable[[Path], dict[str, list[str]]]] = {
    **{f"{learns.strip(':') or 'full'}-{steps}": partial(trained, learns=learns, steps=steps)
       for learns, counts in STEPS.items() for steps in counts},
    "seeds": seeds, "layers": layers, "forgotten": forgotten,
}  # fmt: skip
"""Part -> its questions."""


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


def run(name: str, out: Path) -> None:
    """A part, from what is finished on; README's image."""
    questions = PARTS[name](out)
    compared(out, f"results-rivals-{name}", [one for rows in questions.values() for one in rows], questions)
    if name == f"lora8-{CHOSEN}":
        rate = chosen(out)["plain"]
        shown = {row("plain", ":lora8", rate, CHOSEN, start): words for start, words in SHOWN.items()}
        before_after(out / "compare", shown, DOCS / IMAGES / "before-after.png")


def few(out: Path) -> None:
    """Smaller catalogues, from what is finished on."""
    rates = chosen(out)
    for count in PHOTOS:
        starts = {training: STARTS[training][0] for training in MAIN}
        pairs = {"mean-constant" if count < FEW and name == "text-constant" else name: name for name in starts}
        names = [
            row(training, ":lora8", rates[same], CHOSEN, "mean+zeromean" if training != same else starts[same])
            for training, same in pairs.items()
        ]
        names.append(row("plain", ":lora8", rates["plain"], CHOSEN, "mean+zeromean+look2"))
        home = out / f"photos-{count}"
        photos = part(home / "photos", count)
        compared(home, f"results-rivals-few-{count}", names, {f"{count:,} images": names}, photos=photos)
