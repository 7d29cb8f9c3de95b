"""Another brand under the same defaults: small garments, low on the left of a grey background, with shadows.

Run by research/results.py --only second, after --only rivals-lora8-300, whose learning rates it takes. Publishes
results-second.json.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import SIZE, garments, shown
from results_catalogue import HELD, compared
from results_rivals import CHOSEN, STARTS, chosen, row

sys.path.insert(0, str(Path(__file__).parent / "tiny"))
from world import cut

GREY = (176, 180, 186)
"""The background; the catalogue's is 255."""
SCALE = 0.78
"""Of a garment or figure beside the catalogue's."""
MIDDLE, FLOOR = 52, 118
"""Column of a product's middle, and row of its lowest pixel; the catalogue's middle is 64."""
SAMPLERS = ("+g1", "+g3", "+g7.5", "+dpm2m+karras", "+eulera", "+unipc", "+unipc+trailing", "+trailing")
"""Beside DDIM, leading, at a guidance of 1.5."""


def photo(picture: np.ndarray) -> np.ndarray:
    """A picture of the catalogue `(SIZE, SIZE, 3)` uint8 as this brand would have taken it."""
    side = round(SIZE * SCALE)
    product = cut(picture).resize((side, side), Image.Resampling.BOX)
    left, _, right, bottom = product.getchannel("a").point(lambda a: 255 * (a > 127)).getbbox()
    place = MIDDLE - (left + right) // 2, FLOOR - bottom
    layer = Image.new("RGBa", (SIZE, SIZE))
    layer.paste(product, place)
    width = right - left
    shadow = Image.new("L", (SIZE, SIZE))
    shadow.paste(product.getchannel("a").resize((side + 12, 10), Image.Resampling.BOX), (place[0], FLOOR - 6))
    dark = np.asarray(shadow.filter(ImageFilter.GaussianBlur(3)), np.float32)[..., None] / 255 * min(1, width / 30)
    canvas = np.float32(GREY) * (1 - 0.4 * dark)
    pixels = np.asarray(layer, np.float32)
    return np.clip(pixels[..., :3] + (1 - pixels[..., 3:] / 255) * canvas + 0.5, 0, 255).astype(np.uint8)


def write(out: Path, split: str, count: int | None = None) -> Path:
    """A split's first photos, with their captions, as a folder."""
    pictures, entries = garments(split, count=count)
    rows = [
        {"file_name": f"{i:05d}.png", "text": entry["text"], "class": entry["class"], "attributes": shown(entry)}
        for i, entry in enumerate(entries)
    ]
    return write_dataset(out, {f"{i:05d}.png": partial(_photo, pictures, i) for i in range(len(rows))}, rows)


def _photo(pictures: np.ndarray, i: int) -> np.ndarray:
    return photo(pictures[i])


def run(out: Path, rates_from: Path) -> None:
    """Everything, from what is finished on. rates_from: where research/results_rivals.py chose them."""
    rates = chosen(rates_from)
    methods = {
        (training, start): row(training, ":lora8", rates[training], CHOSEN, start)
        for training, starts in STARTS.items()
        for start in starts
    }
    ours, noise = methods["text-constant", "text+zeromean"], methods["plain", "noise"]
    look = methods["plain", "text+zeromean+look1"]
    questions = {"Another brand": [ours, *(name for name in methods.values() if name != ours)]}
    questions |= {
        f"{sampler[1:]}": [one.replace("@five", f"{sampler}@two") for one in (ours, look, noise)]
        for sampler in SAMPLERS
    }
    photos = write(out / "photos", "train")
    write(out / "held", "test", HELD)
    names = [name for rows in questions.values() for name in rows]
    compared(out, "results-second", names, questions, photos=photos)
