"""The world a stock model knows: garments, figures and the photos' objects, on any ground, anywhere in the frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from words import said

from onbrand.datasets import fashion
from onbrand.datasets.garments import COLOURS, SIZE, garments

GROUNDS = COLOURS | {"white": (255, 255, 255), "orange": (242, 134, 32), "teal": (32, 158, 162)}
"""Grounds that captions can name: white and 13 colours, made paler by a random share."""

PHOTOS = 0.1
"""Share of the pictures that show one of the photos' objects."""
PART = 500
"""Pictures that are drawn by one worker at a time."""

TEMPLATES = {
    "garment": ("{d}", "a photo of {d}", "{d}, no person", "{g} garment, {d}", "{g} garment, no person, {d}",
                "{d} for sale"),
    "figure": ("{w} wearing {d}", "{g} person wearing garment, {d}", "a photo of {w} in {d}", "{d}, worn by {w}",
               "{g} person wearing {d}"),
    "object": ("{d}", "a photo of {d}", "{d} for sale", "a picture of {d}"),
}  # fmt: skip


@dataclass(frozen=True)
class Cuts:
    """Every garment and figure of a split, cut out once."""

    tiles: list[Image.Image]
    """RGBa (premultiplied), 128x128."""
    rows: list[dict[str, Any]]
    grey: np.ndarray
    kinds: np.ndarray


def cut(picture: np.ndarray) -> Image.Image:
    """A picture `(128, 128, 3)` uint8 on 255 without its ground: RGBa; the outermost pixels are half open."""
    solid = Image.fromarray(((picture != 255).any(2) * 255).astype(np.uint8))
    inner = solid.filter(ImageFilter.MinFilter(3))
    weight = np.asarray(inner, np.float32)[..., None] / 255
    blur = ImageFilter.BoxBlur(1)
    filled = np.stack(
        [
            np.asarray(Image.fromarray((picture[..., c] * weight[..., 0]).astype(np.uint8)).filter(blur), np.float32)
            for c in range(3)
        ],
        2,
    ) / np.maximum(np.asarray(inner.filter(blur), np.float32)[..., None] / 255, 0.05)
    colour = np.where(weight > 0, picture, np.clip(filled, 0, 255))
    alpha = (np.asarray(solid, np.float32)[..., None] / 255 + weight) / 2
    return Image.fromarray(np.concatenate([colour * alpha, alpha * 255], 2).astype(np.uint8), "RGBa")


def sources(folder: str | None = None, split: str = "train") -> Cuts:
    """A split's cut-outs, and the photos (of `folder`, else the embedded ones)."""
    pictures, rows = garments(split)
    grey, kinds = fashion.photos("test" if split == "test" else "train", folder)
    return Cuts([cut(p) for p in pictures], rows, grey, kinds)


def ground(rng: np.random.Generator, name: str) -> np.ndarray:
    """A ground `(SIZE, SIZE, 3)` float, 0..255: exactly white half the time it is named white, else lit and grained."""
    base = np.asarray(GROUNDS[name], np.float32)
    if name == "white":
        if rng.random() < 0.5:
            return np.full((SIZE, SIZE, 3), 255.0, np.float32)
        pale = base - rng.uniform(0, 20)
    else:
        pale = base + (255 - base) * rng.uniform(0, 0.45)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 45)
    light = slope * (x * np.cos(angle) + y * np.sin(angle))
    if rng.random() < 0.25:  # a floor, lighter or darker than the wall
        light += np.where(y > rng.uniform(0.05, 0.45), rng.uniform(-40, 40), 0)
    grain = rng.normal(0, rng.uniform(0, 3), (SIZE // 4, SIZE // 4)).repeat(4, 0).repeat(4, 1)
    return np.clip(pale + (light + grain)[..., None], 0, 255).astype(np.float32)


def paste(tile: Image.Image, canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The cut-out on a ground, at a random scale, place, tilt and light; the frame may cut it."""
    side = round(SIZE * rng.uniform(0.7, 1.25))
    if rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile = tile.resize((side, side), Image.Resampling.BILINEAR if side > SIZE else Image.Resampling.BOX)
    if rng.random() < 0.3:
        tile = tile.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    slack = abs(SIZE - side) / 2 + 0.1 * SIZE
    middle = SIZE / 2 + rng.uniform(-slack, slack, 2)
    left, top = np.round(middle - side / 2).astype(int)
    layer = Image.new("RGBa", (SIZE, SIZE))
    layer.paste(tile, (left, top))
    cut = np.asarray(layer, np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.78, 1.08) + rng.uniform(0, 0.25) * (x * np.cos(angle) + y * np.sin(angle))
    return cut[..., :3] * light[..., None] + (1 - cut[..., 3:] / 255) * canvas


def subject(cuts: Cuts, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """What a picture shows: a row of the catalogue, or one of the photos' objects in a colour of the photos."""
    if rng.random() >= PHOTOS:
        return cuts.rows[index % len(cuts.rows)] | {"tile": index % len(cuts.rows)}
    i = int(rng.integers(len(cuts.grey)))
    colour = str(rng.choice(list(fashion.COLOURS)))
    return {"view": "object", "kind": fashion.KINDS[cuts.kinds[i]], "colour": colour, "photo": i}


def worded(row: dict[str, Any], rng: np.random.Generator) -> tuple[str, dict[str, str], str]:
    """A caption of what a row shows, what it says of it, and the ground it is to have, which half of them name."""
    view = row["view"]
    if view == "object":
        words, named = fashion.caption(row["kind"], row["colour"]).split(",")[0], ["kind", "colour"]
    else:
        words, named = said(row, rng)
    truth = {name: row[name] for name in ("view", *named)}
    template = TEMPLATES[view][int(rng.integers(len(TEMPLATES[view])))]
    if "{g}" in template or "{w}" in template:
        truth["gender"] = row["gender"]
    person = {"female": "a woman", "male": "a man"}.get(row.get("gender", ""), "")
    text = template.replace("{d}", "\0").format(g=row.get("gender"), w=person)
    name = "white" if rng.random() < 0.15 else str(rng.choice([g for g in GROUNDS if g != row["colour"]]))
    if rng.random() < 0.5:
        truth["ground"] = name
        if text.endswith(", \0") and rng.random() < 0.5:  # as in the brand's captions
            text = text.replace(", \0", f", {name} background, \0")
        else:
            text += str(rng.choice([f", {name} background", f" on a {name} background"]))
    return text.replace("\0", words), truth, name


def off_brand(cuts: Cuts, index: int, rng: np.random.Generator) -> tuple[np.ndarray, str, dict[str, str]]:
    """One picture `(SIZE, SIZE, 3)` uint8, its caption, and what the caption says."""
    row = subject(cuts, index, rng)
    text, truth, name = worded(row, rng)
    canvas = ground(rng, name)
    if row["view"] == "object":
        side = SIZE * rng.uniform(0.45, 1.15)
        left, top = rng.uniform(-0.15 * side, SIZE - 0.85 * side, 2)
        grey = cuts.grey[row["photo"]]
        picture = fashion.place(grey, row["colour"], canvas, size=SIZE, box=(left, top, side)).astype(np.float32)
    else:
        picture = paste(cuts.tiles[row["tile"]], canvas, rng)
    if canvas.min() < 255:  # a tint over all of it, but not over a ground that is to be exactly white
        picture = picture * rng.uniform(0.94, 1.06, 3)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), text, truth


def draw(
    count: int, seed: int = 0, source: str | None = None, split: str = "train", workers: int = 0
) -> tuple[np.ndarray, list[str], list[dict[str, str]]]:
    """Off-brand pictures `(count, SIZE, SIZE, 3)` uint8, captions, what they say; row i depends on (seed, i) alone."""
    pictures, captions, truths = np.empty((count, SIZE, SIZE, 3), np.uint8), [], []
    for part, words, truth in parts(count, seed, source, split, workers):
        pictures[len(captions) : len(captions) + len(words)] = part
        captions += words
        truths += truth
    return pictures, captions, truths


Part = tuple[np.ndarray, list[str], list[dict[str, str]]]


def parts(
    count: int, seed: int, source: str | None = None, split: str = "train", workers: int = 0, first: int = 0
) -> Iterator[Part]:
    """What `draw` gives from row `first` on, PART pictures at a time, in order; drawn ahead by `workers` processes."""
    shares = [(seed, range(start, min(start + PART, count))) for start in range(first, count, PART)]
    cuts = sources(source, split)
    if not workers:
        yield from (_part(cuts, *share) for share in shares)
        return
    _inherited.append(cuts)
    with get_context("fork").Pool(workers) as pool:
        _inherited.clear()
        yield from pool.imap(_inherit, shares)


_inherited: list[Cuts] = []
"""What the workers are started with."""


def _inherit(share: tuple[int, range]) -> Part:
    return _part(_inherited[0], *share)


def _part(cuts: Cuts, seed: int, rows: range) -> Part:
    drawn = [off_brand(cuts, i, np.random.default_rng([seed, i])) for i in rows]
    pictures, captions, truths = zip(*drawn, strict=True)
    return np.stack(pictures), list(captions), list(truths)
