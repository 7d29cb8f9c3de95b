"""The catalogue of garments: pairs drawn from CC0 meshes, each garment alone and on a person, with what is in them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onbrand.datasets.folder import write_dataset
from onbrand.errors import OnbrandError

SIZE = 128
"""Side of an image, pixels."""

PREFIXES = {
    "female garment": "female garment, no person, white background",
    "male garment": "male garment, no person, white background",
    "female person": "female person wearing garment",
    "male person": "male person wearing garment",
}
"""Class -> what its captions begin with: the paper's four (its section 4.1)."""

COLOURS = {
    "black": (38, 38, 41),
    "white": (238, 238, 236),
    "grey": (146, 147, 150),
    "beige": (221, 199, 164),
    "brown": (118, 76, 46),
    "red": (198, 36, 44),
    "yellow": (242, 204, 56),
    "green": (52, 132, 70),
    "blue": (52, 108, 204),
    "navy": (30, 40, 92),
    "purple": (118, 64, 156),
    "pink": (240, 152, 184),
}
"""The 12 dyes, sRGB 0..255, before light."""

SKIN_TONES = {
    "fair": (243, 212, 195),
    "light": (230, 188, 162),
    "medium": (206, 160, 128),
    "tan": (174, 126, 94),
    "brown": (126, 86, 63),
    "deep": (86, 58, 46),
}
"""The 6 tones of skin, sRGB 0..255, before light."""

VALUES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "kind": ("t-shirt", "long-sleeve top", "sleeveless top", "trousers", "shorts", "skirt", "dress"),
    "colour": tuple(COLOURS),
    "second_colour": ("none", *COLOURS),
    "print": ("plain", "striped", "pinstriped", "checked", "dotted", "colour-block"),
    "length": ("cropped", "regular", "long", "full-length", "thigh-length", "mini", "knee-length", "midi", "maxi"),
    "sleeve": ("none", "sleeveless", "short", "long"),
    "neckline": ("none", "crew", "v-neck", "scoop", "square", "boat"),
    "fit": ("slim", "regular", "loose"),
    "skin_tone": tuple(SKIN_TONES),
    "body_shape": ("slim", "average", "athletic", "sturdy", "full"),
}
"""Each attribute's values; "none" where a garment has no such thing (a plain one's second colour, a skirt's sleeve)."""

SPLITS = ("train", "validation", "test")


def garment_folder() -> Path:
    """The Parquet files that ship with onbrand: a folder of images as `onbrand fit --split train` reads it."""
    return Path(str(resources.files("onbrand") / "assets" / "garments"))


def split_file(split: str) -> Path:
    """The Parquet file of a split; OnbrandError for an unknown one."""
    if split not in SPLITS:
        raise OnbrandError("dataset", f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    return garment_folder() / f"{split}-00000-of-00001.parquet"


def garments(
    split: str = "train", images: bool = True, count: int | None = None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Images `(N, 128, 128, 3)` uint8 with background 255, and their rows: text, class, view, pair, attributes ...

    Rows 2i and 2i + 1 are a pair: a garment alone and on a person. Columns: docs/research/catalogue.md; for `region`,
    `tryon`.

    Args:
        split: "train", "validation" or "test".
        images: whether they are decoded; if not, the array is `(0, 128, 128, 3)`.
        count: only the first so many; None: all.

    Raises:
        OnbrandError: an unknown split, or one that holds fewer than `count`.
    """
    import pyarrow.parquet as pq

    file = split_file(split)
    skipped = {"region"} if images else {"region", "image"}
    columns = [name for name in pq.read_schema(file).names if name not in skipped]
    table = pq.read_table(file, columns=columns)
    if count is not None and not 0 < count <= len(table):
        raise OnbrandError("dataset", f"count must be 1..{len(table)}, what {split!r} holds, got {count}")
    rows = table.slice(0, count).to_pylist()
    out = np.empty((len(rows) if images else 0, SIZE, SIZE, 3), np.uint8)
    for i, row in enumerate(rows if images else ()):
        out[i] = np.asarray(Image.open(io.BytesIO(row.pop("image")["bytes"]), formats=["WEBP"]).convert("RGB"))
    return out, rows


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row's caption says, attribute -> value: what its description names, and gender and view by its prefix."""
    return {name: row[name] for name in (*row["named"].split(","), "gender", "view")}


def write_garments(folder: str | Path, split: str = "test", count: int | None = None) -> Path:
    """Write the first images of a split as PNG, with `metadata.jsonl` (file_name, text, class, attributes)."""
    images, rows = garments(split, count=count)
    entries = [
        {"file_name": f"{i:05d}.png", "text": row["text"], "class": row["class"], "attributes": shown(row)}
        for i, row in enumerate(rows)
    ]
    images_of = {str(entry["file_name"]): partial(images.__getitem__, i) for i, entry in enumerate(entries)}
    return write_dataset(folder, images_of, entries)


def descriptions() -> list[dict[str, Any]]:
    """The 24 freeform descriptions of garments that nobody drew, for the test: `text`, `gender`, `attributes` it names.

    Written for this project; the paper's own 24 are in its supplement.
    """
    entries: list[dict[str, Any]] = json.loads((garment_folder() / "descriptions.json").read_text())
    return entries


def caption(class_name: str, description: str) -> str:
    """A description behind its class's prefix, as all captions here are and the paper's."""
    if class_name not in PREFIXES:
        raise OnbrandError("dataset", f"class_name must be one of {', '.join(map(repr, PREFIXES))}, got {class_name!r}")
    return f"{PREFIXES[class_name]}, {description}"
