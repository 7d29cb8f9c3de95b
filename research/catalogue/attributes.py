"""What each pair shows: attributes drawn by (seed, pair), and which combinations are kept from training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from onbrand.datasets.garments import COLOURS, VALUES

KINDS: dict[str, dict[str, float]] = {
    "female": {
        "t-shirt": 2, "long-sleeve top": 2, "sleeveless top": 2, "trousers": 2, "shorts": 1.5, "skirt": 3, "dress": 3.5
    },
    "male": {"t-shirt": 3, "long-sleeve top": 3, "sleeveless top": 2, "trousers": 3, "shorts": 2.5},
}  # fmt: skip
"""How often each kind occurs, relatively."""
PRINTS = {"plain": 0.3, "striped": 0.16, "pinstriped": 0.13, "checked": 0.14, "dotted": 0.14, "colour-block": 0.13}
NECKLINES: dict[str, dict[str, float]] = {
    "female": {"crew": 3, "v-neck": 2, "scoop": 2, "square": 1.5, "boat": 1.5},
    "male": {"crew": 3, "v-neck": 2, "scoop": 1},
}
FITS = {"slim": 1, "regular": 1, "loose": 1}
SHARES = {"train": (0.0, 0.92), "validation": (0.92, 0.96), "test": (0.96, 1.0)}
"""How pairs of seen combinations fall to the splits."""


def attributes(seed: int, pair: int) -> dict[str, str]:
    """The attributes of a pair, fixed by (seed, pair) alone; values as in `onbrand.datasets.garments.VALUES`."""
    rng = np.random.default_rng([seed, pair])

    def pick(weights: Mapping[str, float]) -> str:
        share = np.cumsum(list(weights.values()))
        return tuple(weights)[int(np.searchsorted(share, rng.random() * share[-1], side="right"))]

    gender = pick({"female": 1.1, "male": 1})
    kind = pick(KINDS[gender])
    colour, print_ = pick(dict.fromkeys(COLOURS, 1)), pick(PRINTS)
    others = [name for name in COLOURS if abs(luminance(name) - luminance(colour)) > 0.27]
    second = pick(dict.fromkeys(others, 1)) if print_ != "plain" else "none"
    upper = kind.endswith(("shirt", "top", "dress"))
    sleeve = {"t-shirt": "short", "long-sleeve top": "long", "sleeveless top": "sleeveless"}.get(kind, "none")
    if kind == "dress":
        sleeve = pick({"sleeveless": 1, "short": 1, "long": 1})
    return {
        "gender": gender,
        "kind": kind,
        "colour": colour,
        "second_colour": second,
        "print": print_,
        "length": pick(_lengths(kind, gender)),
        "sleeve": sleeve,
        "neckline": pick(NECKLINES[gender]) if upper else "none",
        "fit": pick(FITS),
        "skin_tone": pick(dict.fromkeys(VALUES["skin_tone"], 1)),
        "body_shape": pick(dict.fromkeys(VALUES["body_shape"], 1)),
    }


def luminance(colour: str) -> float:
    """How light a dye looks, 0..1."""
    r, g, b = COLOURS[colour]
    return (0.299 * r + 0.587 * g + 0.114 * b) / 255


def _lengths(kind: str, gender: str) -> Mapping[str, float]:
    return {
        "trousers": {"full-length": 2, "cropped": 1},
        "shorts": {"thigh-length": 1, "knee-length": 1},
        "skirt": {"mini": 1, "knee-length": 1, "midi": 1, "maxi": 1},
        "dress": {"mini": 1, "knee-length": 1, "midi": 1, "maxi": 1},
    }.get(kind, {"regular": 2, "long": 1} | ({"cropped": 1} if gender == "female" else {}))


@lru_cache(8)
def held_out(seed: int) -> dict[tuple[str, str, str], str]:
    """(kind, colour, print) -> "test" or "validation" for the combinations that occur in no other split.

    One colour of every kind and print for each of the two, every colour about equally often.
    """
    rng, colours = np.random.default_rng([seed, 0x5EED]), tuple(COLOURS)
    groups = [(kind, name) for kind in VALUES["kind"] for name in VALUES["print"]]
    chosen: dict[tuple[str, str, str], str] = {}
    for split, shift in (("test", 0), ("validation", 5)):
        order = rng.permutation(len(groups))
        for (kind, name), place in zip(groups, order, strict=True):
            cell = (kind, colours[(place + shift) % len(colours)], name)
            if cell in chosen:
                cell = (kind, colours[(place + shift + 1) % len(colours)], name)
            chosen[cell] = split
    return chosen


def split_of(seed: int, pair: int, row: dict[str, str]) -> tuple[str, str]:
    """A pair's split, and "held out" if its combination occurs in this split alone, else "seen"."""
    split = held_out(seed).get((row["kind"], row["colour"], row["print"]))
    if split:
        return split, "held out"
    draw = np.random.default_rng([seed, pair, 1]).random()
    return next(name for name, (low, high) in SHARES.items() if low <= draw < high), "seen"
