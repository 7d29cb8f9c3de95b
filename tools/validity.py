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
    pictures, held = brand_pictures("train", 2000), brand_pictures("test", 1000)
    pipe = load("pilot")
    decoded, held_decoded = (decode_x0(pipe, encode_x0(pipe, part)) for part in (pictures, held))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plain, wide = learn(pictures), learn(pictures, decoded=decoded)
    shares = [judge(*pair).passed for pair in ((plain, held), (wide, held), (wide, held_decoded))]
    print("| property | photos | photos, learnt with `decoded` | the same through the pilot's VAE |\n|---|---|---|---|")
    for name in shares[0]:
        print(f"| {name} | " + " | ".join(told(passed[name]) for passed in shares) + " |")
    print("\n| violation | property | fail it | learnt with `decoded` |\n|---|---|---|---|")
    for words, (name, broken) in (VIOLATIONS | {words: ("light", made) for words, made in UNSEEN.items()}).items():
        failed = [~judge(one, broken(held)).passed[name] for one in (plain, wide)]
        print(f"| {words} | {name} | " + " | ".join(told(column) for column in failed) + " |")


def figures() -> None:
    """Of garments and figures: four kinds of picture, each held against its own photos."""
    pictures, kinds = test_figures.load("train", 4020)
    reference = learn(pictures, classes=kinds)
    held, classes = test_figures.load("test", 550)
    found = judge(reference, held, classes=classes)
    print("\n| property | pictures held out pass |\n|---|---|")
    for name, passed in found.passed.items():
        print(f"| {name} | {told(passed[found.judged[name]])} |")
    rows = [i for i, name in enumerate(classes) if name.endswith("person")]
    print("\n| violation by a figure | property | fail it |\n|---|---|---|")
    for words, (name, broken) in test_figures.VIOLATIONS.items():
        verdict = judge(reference, broken(held[rows]), classes=[classes[i] for i in rows])
        print(f"| {words} | {name} | {told(~verdict.passed[name])} |")
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
