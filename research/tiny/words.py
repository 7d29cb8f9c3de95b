"""What a stock model has read: the same garments in many more words than the brand's captions use."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "catalogue"))
from captions import FIT, KIND, LENGTH, Table, describe

MORE_KIND: Table = {
    "t-shirt": ("short-sleeve top", "short-sleeved shirt"),
    "long-sleeve top": (
        "long-sleeved shirt",
        "long-sleeve jumper",
        "pullover with long sleeves",
        "top with long sleeves",
    ),
    "sleeveless top": ("vest", "vest without sleeves", "top without sleeves", "sleeveless shirt"),
    "trousers": ("slacks", "long trousers"),
    "shorts": ("short trousers", "bermuda shorts"),
    "skirt": ("skirt",),
    "dress": ("gown", "frock", "dress"),
}
MORE_LENGTH: Table = {
    "cropped": ("cut short", "short at the hem", "cropped at the end"),
    "regular": ("to the hip", "of normal length"),
    "long": ("long", "over the hip", "long at the hem"),
    "full-length": ("full length", "down to the floor", "down to the shoe", "ankle-length"),
    "thigh-length": ("tiny", "very short", "to the thigh"),
    "mini": ("very short", "far above the knee"),
    "knee-length": ("to the knee", "down to the knee", "that stops at the knee", "with the hem at the knee"),
    "midi": ("mid-calf", "below the knee", "to the calf"),
    "maxi": ("floor-length", "down to the floor", "floor-skimming", "to the ankle"),
}
MORE_SLEEVE: Table = {
    "sleeveless": ("no sleeves",),
    "short": ("short sleeves", "half sleeves"),
    "long": ("long sleeves", "sleeves to the wrist"),
}
MORE_NECK: Table = {
    "crew": ("a crew neck", "a round neck", "a high round neck"),
    "v-neck": ("a v-neck", "a deep v-neck", "a neck in a v"),
    "scoop": ("a scoop neck", "a low scooped neck", "a low round neck"),
    "square": ("a square neck", "a square-cut neck"),
    "boat": ("a boat neck", "a wide neck", "a wide boat neck"),
}
MORE_FIT: Table = {
    "slim": ("close-fitting", "tight", "cut close to the body", "tailored", "narrow"),
    "regular": ("of regular cut", "straight", "regular"),
    "loose": ("oversized", "baggy", "flowing", "roomy", "easy", "wide"),
}
MORE_PRINT: Table = {
    "plain": ("in {c}", "all {c}", "in one solid {c}", "plain {c}, one solid colour"),
    "striped": ("{c} with broad {s} stripes", "in {c} and {s} stripes", "{c}, with horizontal stripes of {s}"),
    "pinstriped": ("{c} with a {s} pinstripe", "{c} with upright {s} stripes", "{c}, with vertical stripes of {s}"),
    "checked": ("in {c} and {s} gingham", "{c} in a {s} check", "in {c} and {s} checks", "{c} with {s} plaid"),
    "dotted": ("{c} covered in {s} dots", "{c} scattered with {s} dots", "in {c} with {s} spots", "{c}, {s} polka-dot"),
    "colour-block": (
        "two-tone, {c} above and {s} below", "{c} at the top and {s} at the hem", "{c} over {s}", "half {c}, half {s}"
    ),
}  # fmt: skip
FILLERS = (
    "summer", "evening", "winter", "little", "breezy", "loud", "sharp", "soft", "smart", "casual", "elegant", "sporty",
    "picnic", "office", "party", "holiday", "gym", "new", "simple", "everyday", "pretty", "tailored", "deep", "bright",
    "light", "style", "festive", "cotton", "linen", "woven",
)  # fmt: skip
"""Words that say nothing of what is drawn."""


def freely(row: dict[str, str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """A description in free words, and the attributes it names: kind, colour and print always."""

    def one(phrases: tuple[str, ...]) -> str:
        return phrases[int(rng.integers(len(phrases)))]

    named = ["kind", "colour", "print", "second_colour"]
    fits = FIT.get(row["kind"], FIT["tops"])
    parts = [one(MORE_PRINT[row["print"]]).format(c=row["colour"], s=row["second_colour"])]
    before = [one(FILLERS)] if rng.random() < 0.5 else []
    for name, words in (
        ("fit", MORE_FIT[row["fit"]] + fits[row["fit"]]),
        ("length", MORE_LENGTH[row["length"]] + LENGTH[row["length"]]),
        ("sleeve", MORE_SLEEVE.get(row["sleeve"], ())),
        ("neckline", MORE_NECK.get(row["neckline"], ())),
    ):
        if words and rng.random() < 0.5 and not (name == "sleeve" and row["kind"] != "dress" and rng.random() < 0.5):
            named.append(name)
            phrase = one(words)
            if name in ("sleeve", "neckline") and rng.random() < 0.6:
                phrase = f"with {phrase}"
            if name in ("fit", "length") and " " not in phrase and rng.random() < 0.6:
                before.append(phrase)
            else:
                parts.append(phrase)
    rng.shuffle(before)
    rng.shuffle(parts)
    kind = one(MORE_KIND[row["kind"]] + 2 * KIND[row["kind"]])
    if rng.random() < 0.5 and row["print"] == "plain":  # "a red skirt" as well as "a skirt, in red"
        before.append(row["colour"])
        parts = [p for p in parts if row["colour"] not in p]
    article = str(rng.choice(["a ", "", "this "]))
    tail = [", ".join(parts), " ".join(parts), " and ".join(parts), ", ".join(parts)][int(rng.integers(4))]
    return f"{article}{' '.join([*before, kind])}{', ' if rng.random() < 0.5 and tail else ' '}{tail}".strip(), named


def said(row: dict[str, str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """A description of a garment, half of them as the catalogue words them, half freely; and what it names."""
    return describe(row, rng) if rng.random() < 0.5 else freely(row, rng)
