"""From attributes to cloth: how each kind is cut, what is worn with it, and what tells two of a kind apart."""

from __future__ import annotations

import numpy as np
from attributes import luminance
from body import Body
from garment import CUFFS, HEMS, LEGS, Cut
from picture import Cloth, Colour

from onbrand.datasets.garments import COLOURS

LIGHT, DARK = (0.80, 0.80, 0.805), (0.31, 0.315, 0.33)
"""What else a person wears is light or dark grey, whichever stands off the garment."""
SHOES = ((0.90, 0.90, 0.90), (0.16, 0.16, 0.17), (0.55, 0.38, 0.26))
TUCK = 0.75
"""Where trousers and skirts begin, from hip (0) to waist (1)."""


def sewn_from(row: dict[str, str], body: Body, rng: np.random.Generator) -> list[Cloth]:
    """The garment's pieces, the lowest first; `rng` gives its own measures and folds."""
    kind, fit = row["kind"], row["fit"]
    first, second = _rgb(row["colour"]), _rgb(row["second_colour"] if row["print"] != "plain" else row["colour"])
    jitter = rng.uniform(-1, 1, 4)
    seeds = [tuple(int(x) for x in rng.integers(1 << 31, size=2)) for _ in range(2)]
    torso = body.waist - body.hip
    begin = body.hip + (TUCK + 0.08 * jitter[3]) * torso

    def cloth(cut: Cut, split: float, seed: int) -> Cloth:
        return Cloth(cut, first, second, row["print"], split, seeds[seed])

    if kind in LEGS:
        end = body.hip + (LEGS[kind][row["length"]] + 0.012 * jitter[0]) * (body.ankle - body.hip)
    if kind in ("trousers", "shorts", "skirt"):
        part = "skirt" if kind == "skirt" else "legs"
        return [cloth(Cut(part, fit, upper=begin, lower=end), 0.45 * begin + 0.55 * end, 0)]
    cuff = CUFFS[row["sleeve"]] + {"short": 0.06, "long": 0.02}.get(row["sleeve"], 0.0) * jitter[1]
    shape = {"cuff": cuff, "neckline": row["neckline"], "depth": 1 + 0.08 * jitter[2]}
    if kind == "dress":
        waist = body.waist + (0.08 * jitter[3] - 0.3)
        top = Cut("top", "slim", lower=waist - 0.9, dress=True, **shape)  # type: ignore[arg-type]
        skirt = Cut("skirt", fit, upper=waist, lower=end, dress=True)
        return [cloth(top, waist, 0), cloth(skirt, waist, 1)]
    hem = body.hip + (HEMS[row["length"]] + 0.07 * jitter[0]) * torso
    return [cloth(Cut("top", fit, lower=hem, **shape), hem + 0.42 * (body.neck - hem), 0)]  # type: ignore[arg-type]


def worn_with(row: dict[str, str], body: Body, rng: np.random.Generator) -> tuple[list[Cloth], Colour]:
    """Plain grey clothes worn beneath the garment's own layer, and the colour of the shoes."""
    seeds = tuple(int(x) for x in rng.integers(1 << 31, size=2))
    shoes = SHOES[int(rng.integers(len(SHOES)))]
    grey = DARK if luminance(row["colour"]) > 0.45 else LIGHT
    torso = body.waist - body.hip
    if row["kind"] == "dress":
        return [], shoes
    if row["kind"] in ("trousers", "shorts", "skirt"):
        tee = Cut("top", "slim", lower=body.hip - 0.02 * torso, cuff=CUFFS["short"], neckline="crew")
        return [Cloth(tee, grey, seed=seeds)], shoes
    end = body.hip + LEGS["trousers"]["full-length"] * (body.ankle - body.hip)
    return [Cloth(Cut("legs", "slim", upper=body.hip + TUCK * torso, lower=end), grey, seed=seeds)], shoes


def _rgb(name: str) -> Colour:
    r, g, b = COLOURS[name]
    return r / 255, g / 255, b / 255
