"""Images to test with, good and broken; a small fixed encoder; an encoding run to be killed."""

import json
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from onbrand.data.encode import encode_all
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder


def draw(seed: Any, size: Any = (32, 32), background: Any = 255) -> Any:
    """(H, W, 3) uint8: noise inside a border of `background`."""
    pixels = np.full((*size, 3), background, np.uint8)
    inner = np.random.default_rng(seed).integers(0, 200, (size[0] - 8, size[1] - 8, 3))
    pixels[4:-4, 4:-4] = inner
    return pixels


def content(pixels: Any, file_format: Any = "PNG", **options: Any) -> Any:
    """The bytes of an image file."""
    stream = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(name: Any, data: Any) -> Any:
    """One chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: Any, height: Any, data: Any, depth: Any = 8, colour: Any = 2, extra: Any = b"") -> Any:
    """A PNG of these exact bytes of image data, right or wrong."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated(file_format: Any, seed: Any) -> Any:
    first, second = Image.fromarray(draw(seed)), Image.fromarray(draw(seed + 1))
    return content(first, file_format, save_all=True, append_images=[second])


BROKEN = {  # fault -> (suffix, seed -> bytes | "missing" | "folder", a word of the reason)
    "truncated jpeg": (".jpg", lambda s: content(draw(s), "JPEG")[:-200], "truncated"),
    "empty": (".png", lambda s: b"", "empty"),
    "text": (".png", lambda s: b"<html>404 not found</html>%d" % s, "not an image"),
    "animated gif": (".gif", lambda s: animated("GIF", s), "animated"),
    "animated webp": (".webp", lambda s: animated("WEBP", s), "animated"),
    "1x1": (".png", lambda s: content(np.full((1, 1, 3), s, np.uint8)), "too small (1 x 1"),
    "gigantic": (".png", lambda s: png(200_000 + s, 200_000, zlib.compress(b"0")), "megapixels"),
    "missing": (".png", lambda s: "missing", "missing"),
    "folder": (".png", lambda s: "folder", "folder"),
    "corrupt zlib": (".png", lambda s: png(32, 32, b"\x78\x9c" + bytes([s]) * 40), "damaged"),
    "corrupt jpeg header": (".jpg", lambda s: b"\xff\xd8\xff\xe0\x00\x10JF" + bytes([s]) * 300, "not an image"),
    "float tiff": (".tiff", lambda s: content(Image.fromarray(np.full((32, 32), s, np.float32)), "TIFF"), "32-bit"),
    "truncated png": (".png", lambda s: content(draw(s))[:-300], "truncated"),
    "over 100 MP": (".png", lambda s: png(11_000, 9_500 + s, zlib.compress(b"0")), "megapixels"),
}


def break_one(folder: Any, fault: Any, seed: Any) -> Any:
    """Puts one broken image of this fault into `folder`; its name."""
    suffix, source, _ = BROKEN[fault]
    name = f"{fault.replace(' ', '_')}_{seed}{suffix}"
    content = source(seed)
    if content == "folder":
        (folder / name).mkdir()
    elif content != "missing":
        (folder / name).write_bytes(content)
    return name


def write_good(folder: Any, count: Any, size: Any = (32, 32)) -> Any:
    """`count` PNGs; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05d}.png" for i in range(count)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(content(draw(seed, size), compress_level=0))
    return names


def write_rows(folder: Any, rows: Any) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_paths: list[str] | None = None


def _record(event: Any, args: Any) -> None:
    if event == "open" and _paths is not None:
        _paths.append(str(args[0]))


@contextmanager
def opened_files() -> Iterator[Any]:
    """The list of the files that are opened while it lasts."""
    global _paths
    if not getattr(_record, "hooked", False):
        sys.addaudithook(_record)  # there is no way to take it off again: it is put on once
        _record.hooked = True
    _paths = paths = []
    try:
        yield paths
    finally:
        _paths = None


class Encoder:
    """A fixed convolution 3 -> 2 x 4 channels at 1/8 of the size, as (mean, logvar); counts what it sees."""

    def __init__(self, pause: Any = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(8, 3, 8, 8, generator=generator) / 14
        self.pause, self.count, self.shapes = pause, 0, []

    def __call__(self, images: Any) -> Any:
        self.count += len(images)
        self.shapes.append(tuple(images.shape))
        time.sleep(self.pause)
        return torch.nn.functional.conv2d(images, self.weight, stride=8).chunk(2, 1)


KEY = Key(vae="a fixed convolution", resolution=(32, 32))


def run(photos: Any, folder: Any, pause: Any) -> None:
    """Encodes `photos` into the store at `folder`, slowly."""
    torch.set_num_threads(1)
    records, _ = read_folder(photos)
    print("begun", flush=True)
    encode_all(records, Encoder(pause), Store(folder, KEY), batch=4, progress=False, shard=8)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
