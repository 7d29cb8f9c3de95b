"""A dataset as a folder of images with metadata.jsonl, which takes the place of no other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onbrand.errors import OnbrandError
from onbrand.io import write_png, write_text

METADATA = "metadata.jsonl"


def write_dataset(
    folder: str | Path, images: Mapping[str, Callable[[], np.ndarray]], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write images as PNG, and a row of metadata.jsonl for each; what is there as it is to be stays untouched.

    Args:
        folder: the folder.
        images: name in it -> its pixels `(H, W, 3 or 4)` uint8.
        rows: the rows of metadata.jsonl.

    Returns:
        The folder.

    Raises:
        OnbrandError: an image of such a name is there and another, or another metadata.jsonl; nothing is written then.
    """
    folder = Path(folder)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    former = (folder / METADATA).read_bytes() if (folder / METADATA).is_file() else b""
    if not (text.encode().startswith(former) or former.startswith(text.encode())):
        raise _taken(folder / METADATA)
    missing = []
    for name, pixels in images.items():
        if not (folder / name).is_file():
            missing.append(name)
        elif (folder / name).read_bytes() != _png(pixels()):
            raise _taken(folder / name)
    for name in missing:
        write_png(folder / name, Image.fromarray(images[name]()))
    write_text(folder / METADATA, text)
    return folder


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _taken(file: Path) -> OnbrandError:
    return OnbrandError(
        "folder", f"a dataset goes into a folder of its own; {file} is there, and another: take another output_dir"
    )
