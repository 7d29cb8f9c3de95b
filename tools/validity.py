"""The two tables of docs/properties.md: real photos that pass each property, and violations that fail theirs."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "measure"))

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


def main() -> None:
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


if __name__ == "__main__":
    main()
