"""A picture file <-> [-1, 1]: the RGB a viewer would show, padded and never cropped; what cannot be used is refused."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)

SMALLEST = 16
"""Pixels: a picture with a shorter side below this is refused."""
LARGEST = 100_000_000
"""Pixels: a picture whose header says more is refused before it is decoded."""
HEAVIEST = 1 << 30
"""Bytes: a file above this is refused before it is read."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
"""What is decoded, by content, not suffix. Formats that run programs (EPS) or have no signature (TGA) are left out."""

_SHOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what turns it upright
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that cannot be used, and why. Collected and listed, never raised: one bad picture does not end a run."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def read_bytes(file: str | Path) -> bytes | Refused:
    """The bytes of a regular file of 1 B to 1 GiB, or why they cannot be had. Does not touch pipes and devices."""
    file = Path(file)
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            return Refused(file, "a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            return Refused(file, "not a regular file")
        if status.st_size > HEAVIEST:
            return Refused(file, f"over {HEAVIEST >> 30} GiB ({status.st_size} bytes)")
        return file.read_bytes() or Refused(file, "empty (0 bytes)")
    except FileNotFoundError:
        return Refused(file, "missing")
    except OSError as error:
        return Refused(file, f"cannot be read: {error.strerror or error}")


def open_picture(file: str | Path, content: bytes | None = None, ground: RGB = WHITE) -> Image.Image | Refused:
    """Opens a picture as 8-bit sRGB, the way a viewer shows it, or says why not.

    Turned upright by its EXIF orientation; an embedded ICC profile is applied (CMYK without one by Pillow's formula);
    16-bit grey is divided by 257, not clipped; palettes are looked up; transparency is laid over `ground` (RGB, 0-255).
    Refused: missing, empty, not a picture, damaged or cut short, animated or of several pages, under 16 pixels on a
    side, over 100 megapixels (by the header, before decoding), 32-bit samples. A wrong suffix does not matter.

    `content`: the file's bytes where they are at hand; `file` is then only its name.
    """
    file = Path(file)
    if content is None:
        read = read_bytes(file)
        if isinstance(read, Refused):
            return read
        content = read
    if not content:
        return Refused(file, "empty (0 bytes)")
    try:
        with _open(content) as picture:
            reason = _unusable(picture)
            if reason:
                return Refused(file, reason)
            picture.load()
            return _flatten(_upright(picture), ground)
    except Image.DecompressionBombError:
        return Refused(file, f"over {LARGEST // 1_000_000} megapixels")
    except Image.UnidentifiedImageError:
        return Refused(file, f"not a picture, or its header is damaged (read are {', '.join(FORMATS)})")
    except Exception as error:  # decoders raise whatever their damaged input led them to
        return Refused(file, f"damaged: {error or type(error).__name__}")


def ground_of(picture: Image.Image) -> RGB:
    """The ground's colour (0-255): per channel the median of a border 1/64 of the shorter side wide, at least 1.

    The median is a value that occurs: a JPEG ground of 254s and 255s gives the commoner of them, not 254.7.
    """
    pixels = np.asarray(picture.convert("RGB"))
    width = max(1, min(pixels.shape[:2]) // 64)
    inner = pixels[width:-width, width:-width]
    counts = [
        np.bincount(pixels[..., c].ravel(), minlength=256) - np.bincount(inner[..., c].ravel(), minlength=256)
        for c in range(3)
    ]
    red, green, blue = (int(np.searchsorted(np.cumsum(count), (count.sum() + 1) // 2)) for count in counts)
    return red, green, blue


def pad(picture: Image.Image, size: tuple[int, int], ground: RGB | None = None) -> Image.Image:
    """The whole picture, centred in `size` = (H, W) pixels, as large as fits; the rest is `ground` (default: its own).

    Nothing is ever cropped. Lanczos where it shrinks, bicubic where it grows; at its own size it is not resampled.
    """
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"a size is (H, W) with H, W >= 1; got {size}")
    scale = min(height / picture.height, width / picture.width)
    inner = (max(1, min(width, round(picture.width * scale))), max(1, min(height, round(picture.height * scale))))
    canvas = Image.new("RGB", (width, height), ground if ground is not None else ground_of(picture))
    if inner != picture.size:
        picture = picture.resize(inner, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    canvas.paste(picture, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def to_tensor(picture: Image.Image) -> Tensor:
    """PIL RGB -> (3, H, W) float32 in [-1, 1]; 0 -> -1, 255 -> 1."""
    return to_range(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))


def to_range(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any shape -> float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub(1.0)


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] (values beyond are clipped) -> PIL RGB, each value rounded; the inverse of `to_tensor`."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"a picture is (3, H, W); got {tuple(pixels.shape)}. Give one of a batch at a time")
    values = pixels.detach().float().cpu().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def _open(content: bytes) -> Image.Image:
    # Pillow warns from 89 megapixels on; the limit here is LARGEST. Threads share the warning filters, hence the lock
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()
        return Image.open(BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def _unusable(picture: Image.Image) -> str | None:
    width, height = picture.size
    if width * height > LARGEST:
        return f"over {LARGEST // 1_000_000} megapixels ({width} x {height})"
    if min(width, height) < SMALLEST:
        return f"too small ({width} x {height}; at least {SMALLEST} pixels on each side)"
    if picture.format != "MPO" and getattr(picture, "is_animated", False):  # MPO: a phone's JPEG and its previews
        return "of several pages: save one" if picture.format == "TIFF" else "animated: save one frame"
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):
        return "32-bit samples, whose white is not known: save it with 8 or 16 bits"
    return None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # EXIF is often damaged in sound pictures, and viewers show those as they lie
        return picture
    return picture.transpose(_SHOWN[orientation]) if orientation in _SHOWN else picture


def _flatten(picture: Image.Image, ground: RGB) -> Image.Image:
    alpha = None
    profile, clear = picture.info.get("icc_profile"), picture.info.get("transparency")
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own convert would clip at 255
        samples = np.asarray(picture).astype(np.int64)
        if isinstance(clear, int):
            alpha = Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8))
        picture = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    elif picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None:
        whole = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
        picture, alpha = whole.convert("RGB"), whole.getchannel("A")
    elif picture.mode not in ("L", "CMYK"):
        picture = picture.convert("RGB")
    colour = _in_srgb(picture, profile)
    return colour if alpha is None else Image.composite(colour, Image.new("RGB", colour.size, ground), alpha)


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            transform = _transform(profile, picture.mode)
            if transform is not None:
                shown = ImageCms.applyTransform(picture, transform)
                if shown is not None:
                    return shown
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            pass  # a damaged profile, or one of another colour model: shown as if it had none
    return picture.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(source):
        return None  # nothing to convert, and rounding must not touch a white of exactly 255
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.buildTransform(
        source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    )
