"""Virtual try-on data: the catalogue's people, and of each the garment alone, cut out where it is worn."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from onbrand.datasets.folder import write_dataset
from onbrand.datasets.garments import SIZE, garments, shown, split_file
from onbrand.errors import OnbrandError

CONDITIONS = "conditions"
"""Sub-folder of the garments cut out."""


def regions(split: str = "test") -> np.ndarray:
    """Where a figure shows its garment, `(N, 128, 128)` bool: more than half of a pixel; the figures' order.

    Known to the renderer, not guessed from the image: region i belongs to row 2i + 1 of `garments(split)`.
    """
    import pyarrow.parquet as pq

    column = pq.read_table(split_file(split), columns=["region"]).column("region").to_pylist()[1::2]
    out = np.empty((len(column), SIZE, SIZE), bool)
    for i, value in enumerate(column):
        out[i] = np.asarray(Image.open(io.BytesIO(value["bytes"]), formats=["PNG"]))
    return out


def cut_out(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """An image `(H, W, 3)` uint8 -> `(H, W, 4)`: transparent and black outside a region `(H, W)` bool."""
    return np.dstack([image * region[..., None], np.where(region, 255, 0)]).astype(np.uint8)


def write_try_on(folder: str | Path, split: str = "train", count: int | None = None) -> Path:
    """Write the first figures of a split as PNG and under conditions/ the garment of each, cut out (RGBA).

    `metadata.jsonl`: file_name, text, class, attributes, conditioning_file_name. OnbrandError for a count beyond the
    split. The task: the paper's section 4.4.
    """
    images, rows = garments(split)
    images, rows, worn = images[1::2], rows[1::2], regions(split)
    if count is not None and not 0 < count <= len(rows):
        raise OnbrandError("dataset", f"count must be 1..{len(rows)}, the people that {split!r} holds, got {count}")
    pixels, entries = {}, []
    for i, row in enumerate(rows[:count]):
        name = f"{i:05d}.png"
        pixels[name] = partial(images.__getitem__, i)
        pixels[f"{CONDITIONS}/{name}"] = partial(cut_out, images[i], worn[i])
        entry = {"file_name": name, "text": row["text"], "class": row["class"], "attributes": shown(row)}
        entries.append(entry | {"conditioning_file_name": f"{CONDITIONS}/{name}"})
    return write_dataset(folder, pixels, entries)
