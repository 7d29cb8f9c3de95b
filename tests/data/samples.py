"""Pictures to test with, good and broken of each kind; a small fixed encoder; an encoding run to be killed."""

import json
import struct
import sys
import time
import zlib
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from onbrand.data.encode import encode_all
from onbrand.data.latents import Key, Store
from onbrand.data.records import read_folder


def draw(seed, size=(32, 32), ground=255):
    """(H, W, 3) uint8: noise inside a border of `ground`."""
    pixels = np.full((*size, 3), ground, np.uint8)
    inner = np.random.default_rng(seed).integers(0, 200, (size[0] - 8, size[1] - 8, 3))
    pixels[4:-4, 4:-4] = inner
    return pixels


def content(pixels, kind="PNG", **options):
    """The bytes of a picture file."""
    stream = BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, data):
    """One chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, data, depth=8, colour=2, extra=b""):
    """A PNG of these exact bytes of image data, right or wrong."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated(kind, seed):
    first, second = Image.fromarray(draw(seed)), Image.fromarray(draw(seed + 1))
    return content(first, kind, save_all=True, append_images=[second])


BROKEN = {  # kind -> (suffix, seed -> bytes | "missing" | "folder", a word of the reason)
    "truncated jpeg": (".jpg", lambda s: content(draw(s), "JPEG")[:-200], "truncated"),
    "empty": (".png", lambda s: b"", "empty"),
    "text": (".png", lambda s: b"<html>404 not found</html>%d" % s, "not a picture"),
    "animated gif": (".gif", lambda s: animated("GIF", s), "animated"),
    "animated webp": (".webp", lambda s: animated("WEBP", s), "animated"),
    "1x1": (".png", lambda s: content(np.full((1, 1, 3), s, np.uint8)), "too small (1 x 1"),
    "gigantic": (".png", lambda s: png(200_000 + s, 200_000, zlib.compress(b"0")), "megapixels"),
    "missing": (".png", lambda s: "missing", "missing"),
    "folder": (".png", lambda s: "folder", "folder"),
    "corrupt zlib": (".png", lambda s: png(32, 32, b"\x78\x9c" + bytes([s]) * 40), "damaged"),
    "corrupt jpeg header": (".jpg", lambda s: b"\xff\xd8\xff\xe0\x00\x10JF" + bytes([s]) * 300, "not a picture"),
    "float tiff": (".tiff", lambda s: content(Image.fromarray(np.full((32, 32), s, np.float32)), "TIFF"), "32-bit"),
    "truncated png": (".png", lambda s: content(draw(s))[:-300], "truncated"),
    "over 100 MP": (".png", lambda s: png(11_000, 9_500 + s, zlib.compress(b"0")), "megapixels"),
}


def break_one(folder, kind, seed):
    """Puts one broken picture of `kind` into `folder`; its name."""
    suffix, make, _ = BROKEN[kind]
    name = f"{kind.replace(' ', '_')}_{seed}{suffix}"
    made = make(seed)
    if made == "folder":
        (folder / name).mkdir()
    elif made != "missing":
        (folder / name).write_bytes(made)
    return name


def write_good(folder, count, size=(32, 32)):
    """`count` PNGs; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05d}.png" for i in range(count)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(content(draw(seed, size), compress_level=0))
    return names


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_watched: list[str] | None = None


def _note(event, args):
    if event == "open" and _watched is not None:
        _watched.append(str(args[0]))


@contextmanager
def opened_files():
    """The list of the files that are opened while it lasts."""
    global _watched
    if not getattr(_note, "hooked", False):
        sys.addaudithook(_note)  # there is no way to take it off again: it is put on once
        _note.hooked = True
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


class Encoder:
    """A fixed convolution 3 -> 2 x 4 channels at 1/8 of the size, as (mean, logvar); counts what it sees."""

    def __init__(self, pause=0.0):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(8, 3, 8, 8, generator=generator) / 14
        self.pause, self.seen, self.shapes = pause, 0, []

    def __call__(self, pictures):
        self.seen += len(pictures)
        self.shapes.append(tuple(pictures.shape))
        time.sleep(self.pause)
        return torch.nn.functional.conv2d(pictures, self.weight, stride=8).chunk(2, 1)


KEY = Key(vae="a fixed convolution", resolution=(32, 32))


def run(photos, folder, pause):
    """Encodes `photos` into the store at `folder`, slowly."""
    torch.set_num_threads(1)
    records, _ = read_folder(photos)
    print("begun", flush=True)
    encode_all(records, Encoder(pause), Store(folder, KEY), batch=4, progress=False, shard=8)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
