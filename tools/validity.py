"""The tables of docs/properties.md: real pictures that pass each property, and violations that fail theirs."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "measure"))

import test_figures
from test_reference import UNSEEN, VIOLATIONS

from conftest import brand_pictures
from onbrand.api.materials import decode_x0, encode_x0
from onbrand.measure.intervals import mean
from onbrand.measure.reference import judge, learn
from onbrand.models.bundle import load


def told(column: torch.Tensor) -> str:
    """A share and its 95 % bootstrap interval, in percent."""
    found = mean(column.float())
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def photos() -> None:
    """Of the photos: one kind of picture."""
    reference, held = learn(brand_pictures("train", 2000)), brand_pictures("test", 1000)
    print("| property | photos held out pass |\n|---|---|")
    for name, passed in judge(reference, held).passed.items():
        print(f"| {name} | {told(passed)} |")
    print("\n| violation | property | fail it |\n|---|---|---|")
    for words, (name, broken) in (VIOLATIONS | {words: ("light", made) for words, made in UNSEEN.items()}).items():
        print(f"| {words} | {name} | {told(~judge(reference, broken(held)).passed[name])} |")


def figures() -> None:
    """Of garments and figures: four kinds of picture, each held against its own photos."""
    pictures, kinds = test_figures.load("train", 4020)
    held, classes = test_figures.load("test", 550)
    pipe = load("tiny")
    decoded, through = (decode_x0(pipe, encode_x0(pipe, part)) for part in (pictures, held))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reference, wide = learn(pictures, classes=kinds), learn(pictures, classes=kinds, decoded=decoded)
    found = [judge(*pair, classes=classes) for pair in ((reference, held), (wide, held), (wide, through))]
    print(
        "\n| property | pictures | learnt with `decoded` | the same through the stock model's VAE |\n|---|---|---|---|"
    )
    for name in found[0].passed:
        print(f"| {name} | " + " | ".join(told(one.passed[name][one.judged[name]]) for one in found) + " |")
    rows = [i for i, name in enumerate(classes) if name.endswith("person")]
    print("\n| violation by a figure | property | fail it | learnt with `decoded` |\n|---|---|---|---|")
    for words, (name, broken) in test_figures.VIOLATIONS.items():
        verdicts = [judge(one, broken(held[rows]), classes=[classes[i] for i in rows]) for one in (reference, wide)]
        print(f"| {words} | {name} | " + " | ".join(told(~one.passed[name]) for one in verdicts) + " |")
    turned = judge(reference, held[rows].flip(2), classes=[classes[i] for i in rows])
    print(f"| upside down | pose | {told(~turned.passed['pose'])} |")
    alone = [i for i, name in enumerate(classes) if name.endswith("garment")]
    asked = [classes[i].replace("garment", "person") for i in alone]
    other = judge(reference, held[alone], classes=asked)
    print(f"| garment where a figure was asked | pose | {told(~other.passed['pose'])} |")


def main() -> None:
    photos()
    figures()


if __name__ == "__main__":
    main()
