"""Where a garment ends: signed distances to its hem, neckline, cuffs and waist, and the lines sewn along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from body import Body
from cloth import Ease
from views import ARM, NZ, X, Y, Z

FAR = np.float32(9.0)
NECKLINES = {  # half width, depth in front, power of the curve (1 a V, 2 round, 6 square)
    "crew": (0.74, 0.5, 2.0),
    "v-neck": (0.78, 1.6, 1.0),
    "scoop": (0.95, 1.25, 2.2),
    "square": (0.95, 0.95, 7.0),
    "boat": (1.3, 0.34, 2.4),
}
HEMS = {"cropped": 0.85, "regular": 0.2, "long": -0.3}
"""Where tops end, from hip (0) to waist (1)."""
LEGS = {
    "shorts": {"thigh-length": 0.24, "knee-length": 0.49},
    "trousers": {"cropped": 0.80, "full-length": 0.985},
    "skirt": {"mini": 0.25, "knee-length": 0.49, "midi": 0.70, "maxi": 0.9},
    "dress": {"mini": 0.25, "knee-length": 0.49, "midi": 0.70, "maxi": 0.9},
}
"""Where legs and skirts end, from hip (0) to ankle (1)."""
CUFFS = {"sleeveless": -1.0, "short": 0.5, "long": 1.78}
"""Where sleeves end, by arm coordinate; below 0 there are none."""
TOP = {"slim": Ease(0.3, 0.08, off=0.04), "regular": Ease(0.8, 0.5), "loose": Ease(1.35, 1.15, off=0.08)}
LEG = {"slim": Ease(leg=0.12, off=0.04), "regular": Ease(leg=0.8), "loose": Ease(leg=1.45, off=0.07)}
SKIRT = {"slim": Ease(flare=-0.16), "regular": Ease(flare=0.42), "loose": Ease(flare=0.95)}


@dataclass(frozen=True)
class Cut:
    """What is cut out of a shell; heights are in the rest pose, decimetres."""

    part: str
    """"top", "legs" or "skirt"."""
    fit: str = "regular"
    upper: float = 0.0
    """Height where it begins (legs, skirt)."""
    lower: float = 0.0
    """Height where it ends."""
    cuff: float = 0.5
    neckline: str = "crew"
    depth: float = 1.0
    """Factor on the neckline's depth."""
    dress: bool = False

    @property
    def shell(self) -> tuple[str, Ease]:
        """The mesh group and the ease it hangs with."""
        if self.part == "skirt":
            return "helper-skirt", SKIRT[self.fit]
        return "helper-tights", (LEG if self.part == "legs" else TOP)[self.fit]


def edges(cut: Cut, body: Body, a: np.ndarray) -> dict[str, np.ndarray]:
    """Distance `(n,)` inside each edge of the pixels' values `a (n, 9)`, decimetres; negative outside it."""
    bend = 0.09 * a[:, Z]  # seen from chest height, hems curve
    if cut.part == "top":
        on_trunk = a[:, ARM] < -0.02
        hem = np.where(on_trunk, a[:, Y] + bend * 0.6 - cut.lower, FAR)
        reach = float(np.linalg.norm(body.at("l-elbow") - body.at("l-shoulder")))
        cuff = _armhole(body, a) if cut.cuff < 0 else (cut.cuff - a[:, ARM]) * reach
        return {"hem": hem, "cuff": cuff, "neck": _neck(cut, body, a)}
    upper = cut.upper - 0.11 * a[:, Z] - a[:, Y] if not cut.dress else cut.upper - a[:, Y]
    return {"hem": a[:, Y] + bend - cut.lower, "waist": upper, "trunk": (-0.1 - a[:, ARM]) * 3}


def inside(found: dict[str, np.ndarray]) -> np.ndarray:
    """The distance to the nearest edge `(n,)`."""
    return np.minimum.reduce(list(found.values()))


def _neck(cut: Cut, body: Body, a: np.ndarray) -> np.ndarray:
    size = (body.neck - body.hip) / 5.32
    width, depth, power = NECKLINES[cut.neckline]
    front = np.clip((a[:, Z] + 0.25) / 0.5, 0, 1)
    width, depth = width * size, (0.14 + front * (depth * cut.depth + 0.08 - 0.14)) * size
    below = np.maximum(body.neck + 0.2 * size - a[:, Y], 0) / depth
    across = np.abs(a[:, X]) / width
    radius = (across**power + below**power) ** (1 / power)
    collar = body.neck + 0.12 * size - a[:, Y]
    return np.minimum((radius - 1) * np.minimum(width, depth), collar)


def _armhole(body: Body, a: np.ndarray) -> np.ndarray:
    shoulder = body.at("l-shoulder")
    drop = np.maximum(shoulder[1] + 0.1 - a[:, Y], 0) / 1.7
    across = shoulder[0] * (0.8 + 0.45 * drop**2) - np.abs(a[:, X])
    on_side = (a[:, Y] < shoulder[1] - 1.2) & (a[:, ARM] < -0.1)
    return np.where(on_side, FAR, np.minimum(across, (0.15 - a[:, ARM]) * 2))


def sewn(cut: Cut, body: Body, a: np.ndarray, found: dict[str, np.ndarray]) -> np.ndarray:
    """Factor `(n,)` about 1 on the cloth's light: stitches, ribs, waistband, fly and pockets are a little darker."""
    tone: np.ndarray = np.ones(len(a), np.float32)

    def line(d: np.ndarray, at: float, strength: float, width: float = 0.035) -> None:
        nonlocal tone
        tone = tone * (1 - strength * np.exp(-(((d - at) / width) ** 2)))

    for name in ("hem", "cuff"):
        if name in found and not (name == "hem" and cut.dress and cut.part == "top"):
            line(found[name], 0.13, 0.16)
            line(found[name], 0.0, 0.22, 0.04)
    if cut.part == "top":
        rib = 0.17 if cut.neckline in ("crew", "v-neck") else 0.1
        line(found["neck"], rib, 0.24)
        tone *= np.where(found["neck"] < rib, 0.96, 1)
        line(a[:, ARM], -0.03, 0.12, 0.03)
        return tone
    if cut.dress:
        line(found["waist"], 0.0, 0.3, 0.06)
        return tone
    line(found["waist"], 0.36, 0.3)
    line(found["waist"], 0.0, 0.2, 0.04)
    if cut.part == "legs":
        front = np.where(a[:, NZ] > 0, found["waist"], FAR)
        x = np.abs(a[:, X])
        tone *= 1 - 0.26 * np.exp(-((a[:, X] / 0.03) ** 2)) * ((front > 0.36) & (front < 1.5))
        pocket = np.abs(x - (1.05 + 0.42 * (front - 0.36)))
        tone *= 1 - 0.3 * np.exp(-((pocket / 0.04) ** 2)) * ((front > 0.36) & (front < 1.35))
        button = np.hypot(a[:, X], front - 0.18)
        tone *= 1 - 0.35 * (button < 0.09)
    return tone
