"""The embedded worlds: garments and figures (`garments`), and real product photos, tinted, on the brand's white."""

from __future__ import annotations

import gzip
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import descriptions as descriptions
from onbrand.datasets.garments import garment_folder as garment_folder
from onbrand.datasets.garments import garments as garments
from onbrand.datasets.garments import shown as shown
from onbrand.datasets.garments import write_garments as write_garments
from onbrand.datasets.try_on import write_try_on as write_try_on
from onbrand.errors import OnbrandError

KINDS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Names of Fashion-MNIST's labels 0..9."""

COLOURS = {
    "black": (38, 38, 42),
    "grey": (150, 150, 152),
    "brown": (120, 76, 44),
    "beige": (222, 196, 158),
    "red": (206, 36, 44),
    "orange": (242, 134, 32),
    "yellow": (244, 208, 48),
    "green": (44, 140, 66),
    "teal": (32, 158, 162),
    "blue": (38, 84, 190),
    "purple": (122, 58, 160),
    "pink": (240, 132, 176),
}
"""The 12 tints, sRGB 0..255, far apart enough to be told by eye."""

CLASS = "product photo"
"""All of it is one kind of *image*, hence one class."""

SIZE, MARGIN = 64, 4
"""Side of an image and its margin (1/16), pixels."""


def photos(split: str = "train", source: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Grey photos `(N, 28, 28)` uint8 with background 255, and their categories `(N,)` as indices of `KINDS`.

    `split` is "train" or "test"; `source` is a folder of the original idx files (Debian's package dataset-fashion-mnist
    puts them in /usr/share/datasets/fashion-mnist), or None for the part embedded here
    (3,000 train, 1,000 test; the first of the originals). Source: github.com/zalandoresearch/fashion-mnist, MIT.
    """
    stem = {"train": "train", "test": "t10k"}.get(split)
    if stem is None:
        raise OnbrandError("dataset", f"split must be 'train' or 'test'; got {split!r}")
    folder = Path(source) if source else Path(str(resources.files("onbrand") / "assets" / "photos"))
    pixels, labels = folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"
    if not pixels.exists():
        raise OnbrandError(
            "dataset", f"{pixels} must exist; install Debian's dataset-fashion-mnist or leave `source` out"
        )
    grey = np.frombuffer(gzip.decompress(pixels.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    return 255 - grey, np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8).astype(int)


def cut_out(grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo `(28, 28)` as shade and opacity, each `(size, size)` float in [0, 1].

    Opacity is 1 inside the product and falls to 0 over its edge; shade is the photo's light and seams, around 0.8.
    """
    ink = np.asarray(Image.fromarray(255 - grey).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    opacity = np.clip((ink - 0.04) / 0.16, 0, 1)
    body = ink[opacity > 0.9]
    middle, spread = (np.median(body), body.std() + 0.05) if body.size else (0.5, 0.2)
    shade = 0.82 - 0.12 * np.clip((ink - middle) / spread, -2.0, 1.5)
    return np.clip(shade, 0, 1), opacity


def place(
    grey: np.ndarray,
    colour: str,
    background: np.ndarray | tuple[int, int, int] = (255, 255, 255),
    *,
    size: int = SIZE,
    box: tuple[float, float, float] | None = None,
) -> np.ndarray:
    """The photo tinted on a background: `(size, size, 3)` uint8.

    `background` is a colour or an image `(size, size, 3)`; `box` the product's (left, top, side) in pixels, cut by the
    frame if it reaches over it; by default the brand's place, centred with a margin of 1/16.
    """
    left, top, side = box or (size * MARGIN / SIZE, size * MARGIN / SIZE, size * (1 - 2 * MARGIN / SIZE))
    left, top, side = round(left), round(top), round(side)
    shade, opacity = cut_out(grey, side)
    canvas = np.broadcast_to(np.asarray(background, np.float32), (size, size, 3)).copy()
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    # shade below 1 darkens the tint, above 0.82 lets a little white light through, so that black has seams too
    tint = np.asarray(COLOURS[colour], np.float32)
    light = shade[part][..., None]
    product = tint * np.minimum(light / 0.82, 1) + (255 - tint) * np.maximum(light - 0.82, 0) * 1.2
    cover = opacity[part][..., None]
    canvas[y0:y1, x0:x1] = cover * product + (1 - cover) * canvas[y0:y1, x0:x1]
    pixels: np.ndarray = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return pixels


def brand_image(grey: np.ndarray, colour: str, size: int = SIZE) -> np.ndarray:
    """The brand's image of a photo: centred, uncropped, background exactly 255; `(size, size, 3)` uint8."""
    return place(grey, colour, size=size)


def caption(category: int | str, colour: str) -> str:
    """Say it as the catalogue does, "a red ankle boot, white background"; vowels take "an", trousers no article."""
    name = KINDS[category] if isinstance(category, int | np.integer) else category
    article = "" if name == "trousers" else "an " if colour[0] in "aeiou" else "a "
    return f"{article}{colour} {name}, white background"


def tint_of(index: int, seed: int = 0) -> str:
    """The colour of photo `index`: fixed by (seed, index) alone."""
    return tuple(COLOURS)[int(np.random.default_rng([seed, index]).integers(len(COLOURS)))]


def write_folder(
    folder: str | Path, split: str = "train", count: int | None = None, source: str | Path | None = None, seed: int = 0
) -> Path:
    """Write brand images as PNG with `metadata.jsonl` (file_name, text, class, kind, colour); returns the folder."""
    grey, categories = photos(split, source)
    if count is not None and not 0 < count <= len(grey):
        raise OnbrandError("dataset", f"count must be 1..{len(grey)}, what {split!r} holds here, got {count}")
    images, rows = {}, []
    for i in range(count or len(grey)):
        colour, name = tint_of(i, seed), f"{i:05d}.png"
        images[name] = partial(brand_image, grey[i], colour)
        row = {"file_name": name, "text": caption(int(categories[i]), colour), "class": CLASS}
        rows.append(row | {"kind": KINDS[categories[i]], "colour": colour})
    return write_dataset(folder, images, rows)
