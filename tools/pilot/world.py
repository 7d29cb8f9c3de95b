"""The world a stock model knows: the photos' objects on random grounds, at random places and scales."""

from __future__ import annotations

import numpy as np

from onbrand.data.catalogue import COLOURS, KINDS, SIZE, caption, photos, place

GROUNDS = COLOURS | {"white": (255, 255, 255)}
"""Grounds that captions can name: white and the 12 tints, made paler by a random share."""

TEMPLATES = ("{}", "a photo of {}", "{} for sale", "a picture of {}")


def ground(rng: np.random.Generator, name: str) -> np.ndarray:
    """A ground `(SIZE, SIZE, 3)` float, 0..255: exactly white half the time it is named white, else lit and grained."""
    base = np.asarray(GROUNDS[name], np.float32)
    if name == "white":
        if rng.random() < 0.5:
            return np.full((SIZE, SIZE, 3), 255.0, np.float32)
        pale = base - rng.uniform(0, 20)
    else:
        pale = base + (255 - base) * rng.uniform(0, 0.45)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 70)
    light = slope * (x * np.cos(angle) + y * np.sin(angle))
    grain = rng.normal(0, rng.uniform(0, 5), (SIZE // 4, SIZE // 4)).repeat(4, 0).repeat(4, 1)
    return np.clip(pale + (light + grain)[..., None], 0, 255).astype(np.float32)


def off_brand(grey: np.ndarray, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One picture `(SIZE, SIZE, 3)` uint8 and its caption; half of the captions name the ground."""
    colour = str(rng.choice(list(COLOURS)))
    name = "white" if rng.random() < 0.15 else str(rng.choice([g for g in GROUNDS if g != colour]))
    side = SIZE * rng.uniform(0.45, 1.15)
    left, top = rng.uniform(-0.15 * side, SIZE - 0.85 * side, 2)
    picture = place(grey, colour, ground(rng, name), box=(left, top, side))
    words = str(rng.choice(TEMPLATES)).format(caption(kind, colour).split(",")[0])
    return picture, words + (f", {name} background" if rng.random() < 0.5 else "")


def draw(count: int, seed: int = 0, source: str | None = None) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Off-brand pictures `(count, SIZE, SIZE, 3)` uint8, captions, photo indices; row i depends on (seed, i) alone."""
    grey, kinds = photos("train", source)
    pictures, captions, which = np.empty((count, SIZE, SIZE, 3), np.uint8), [], np.arange(count) % len(grey)
    for i, j in enumerate(which):
        pictures[i], words = off_brand(grey[j], int(kinds[j]), np.random.default_rng([seed, i]))
        captions.append(words)
    return pictures, captions, which


def every_caption() -> list[str]:
    """Every caption of the off-brand world and of the brand: what the tokenizer learns its words from."""
    plain = [caption(kind, colour).split(",")[0] for kind in KINDS for colour in COLOURS]
    worded = [t.format(p) for t in TEMPLATES for p in plain]
    return worded + [f"{w}, {g} background" for w in worded for g in GROUNDS]
