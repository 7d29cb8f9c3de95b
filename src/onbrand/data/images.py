"""An image file <-> [-1, 1]: the RGB a viewer would show, padded and never cropped; what cannot be used is refused."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from onbrand.data.addresses import Address
from onbrand.errors import OnbrandError, UnreadableImage

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)

SMALLEST = 16
"""Pixels: an image with a shorter side below this is refused."""
LARGEST = 100_000_000
"""Pixels: an image whose header says more is refused before it is decoded."""
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


def read_bytes(file: str | Path) -> bytes:
    """The bytes of a regular file of 1 B to 1 GiB; UnreadableImage for another. Does not touch pipes and devices."""
    file = file if isinstance(file, Path) else Path(file)
    try:
        status = None if isinstance(file, Address) else os.stat(file)
        if status and stat.S_ISDIR(status.st_mode):
            raise UnreadableImage(file, "a folder, not a file")
        if status and not stat.S_ISREG(status.st_mode):
            raise UnreadableImage(file, "not a regular file")
        if status and status.st_size > HEAVIEST:
            raise UnreadableImage(file, f"over {HEAVIEST >> 30} GiB ({status.st_size} bytes)")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UnreadableImage(file, "missing") from error
    except OSError as error:
        raise UnreadableImage(file, f"cannot be read: {error.strerror or error}") from error
    except OnbrandError:
        raise
    except ValueError as error:  # a name that no file can have
        raise UnreadableImage(file, f"cannot be read: {error}") from error
    if not content:
        raise UnreadableImage(file, "empty (0 bytes)")
    return content


def open_image(
    file: str | Path, content: bytes | None = None, background: RGB = WHITE, smallest: int = SMALLEST
) -> Image.Image:
    """Opens an image as 8-bit sRGB, the way a viewer shows it; UnreadableImage says why not.

    Turned upright by its EXIF orientation; an embedded ICC profile is applied (CMYK without one by Pillow's formula);
    16-bit grey is divided by 257, not clipped; palettes are looked up; transparency is laid over `background`.
    Refused: missing, empty, not an image, damaged or cut short, animated or of several pages, under 16 pixels on a
    side, over 100 megapixels (by the header, before decoding), 32-bit samples. A wrong suffix does not matter.

    This is how every image is opened, whoever it is from: of a known format, of a known size, by no other program.

    `content`: the file's bytes where they are at hand; `file` is then only its name. `smallest`: pixels of the shorter
    side; less will do where an image is only shown.
    """
    file = file if isinstance(file, Path) else Path(file)
    if content is None:
        content = read_bytes(file)
    if not content:
        raise UnreadableImage(file, "empty (0 bytes)")
    try:
        with _open(content) as image:
            reason = _unusable(image, smallest)
            if reason:
                raise UnreadableImage(file, reason)
            image.load()
            return _flatten(_upright(image), background)
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(file, f"over {LARGEST // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        reason = f"not an image, or its header is damaged (read are {', '.join(FORMATS)})"
        raise UnreadableImage(file, reason) from error
    except Exception as error:  # decoders raise whatever their damaged input led them to
        raise UnreadableImage(file, f"damaged: {error or type(error).__name__}") from error


def shown_size(file: str | Path, content: bytes) -> tuple[int, int]:
    """(H, W) of an image as it is shown, off its header; UnreadableImage for what has none."""
    try:
        with _open(content) as image:
            # a PNG that says nothing of EXIF in front would be decoded in search of it
            turned = ("exif" in image.info or image.format != "PNG") and image.getexif().get(0x0112) in range(5, 9)
            return (image.width, image.height) if turned else (image.height, image.width)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their damaged input led them to
        raise UnreadableImage(file, f"its size cannot be read: {error or type(error).__name__}") from error


def has_transparency(content: bytes) -> bool:
    """Whether an image has any, by its header; UnreadableImage for what has none."""
    try:
        with _open(content) as image:
            return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    except OSError as error:
        raise UnreadableImage("image", f"its header cannot be read: {error}") from error


def is_whole(file: str | Path) -> bool:
    """Whether a PNG is all there, by the checksum of each of its parts; it is not decoded."""
    try:
        with _open(read_bytes(file)) as image:
            image.verify()
            return image.format == "PNG"
    except MemoryError:
        raise
    except Exception:  # Pillow raises whatever damaged input led it to
        return False


def background_of(image: Image.Image) -> RGB:
    """The background's colour (0-255): per channel the median of a border 1/64 of the shorter side wide, at least 1.

    The median is a value that occurs: a JPEG background of 254s and 255s gives the commoner of them, not 254.7.
    """
    pixels = np.asarray(image.convert("RGB"))
    width = max(1, min(pixels.shape[:2]) // 64)
    inner = pixels[width:-width, width:-width]
    counts = [
        np.bincount(pixels[..., c].ravel(), minlength=256) - np.bincount(inner[..., c].ravel(), minlength=256)
        for c in range(3)
    ]
    red, green, blue = (int(np.searchsorted(np.cumsum(count), (count.sum() + 1) // 2)) for count in counts)
    return red, green, blue


def pad(image: Image.Image, size: tuple[int, int], background: RGB | None = None) -> Image.Image:
    """The whole image, centred in `size` = (H, W) pixels, as large as fits; the rest is `background` (None: its own).

    Nothing is ever cropped. Lanczos where it shrinks, bicubic where it grows; at its own size it is not resampled.
    """
    height, width = size
    if min(height, width) < 1:
        raise OnbrandError("image", f"a size is (H, W) with H, W >= 1; got {size}")
    scale = min(height / image.height, width / image.width)
    inner = (max(1, min(width, round(image.width * scale))), max(1, min(height, round(image.height * scale))))
    canvas = Image.new("RGB", (width, height), background if background is not None else background_of(image))
    if inner != image.size:
        image = image.resize(inner, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    canvas.paste(image, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """PIL RGB -> (3, H, W) float32 in [-1, 1]; 0 -> -1, 255 -> 1."""
    return to_range(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def to_range(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any shape -> float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub(1.0)


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] (values beyond are clipped) -> PIL RGB, each value rounded; the inverse of `to_tensor`."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise OnbrandError("image", f"an image is (3, H, W); got {tuple(pixels.shape)}. Give one of a batch at a time")
    values = pixels.detach().float().cpu().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def _open(content: bytes) -> Image.Image:
    # Pillow warns from 89 megapixels on; the limit here is LARGEST. Threads share the warning filters, hence the lock
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.init()
        return Image.open(BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def _unusable(image: Image.Image, smallest: int) -> str | None:
    width, height = image.size
    if width * height > LARGEST:
        return f"over {LARGEST // 1_000_000} megapixels ({width} x {height})"
    if min(width, height) < smallest:
        return f"too small ({width} x {height}; at least {smallest} pixels on each side)"
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a phone's JPEG and its previews
        return "of several pages: save one" if image.format == "TIFF" else "animated: save one frame"
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        return "32-bit samples, whose white is not known: save it with 8 or 16 bits"
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # EXIF is often damaged in sound images, and viewers show those as they lie
        return image
    return image.transpose(_SHOWN[orientation]) if orientation in _SHOWN else image


def _flatten(image: Image.Image, background: RGB) -> Image.Image:
    alpha = None
    profile, clear = image.info.get("icc_profile"), image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own convert would clip at 255
        samples = np.asarray(image).astype(np.int64)
        if isinstance(clear, int):
            alpha = Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8))
        image = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    colour = _in_srgb(image, profile)
    return colour if alpha is None else Image.composite(colour, Image.new("RGB", colour.size, background), alpha)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            transform = _transform(profile, image.mode)
            if transform is not None:
                converted = ImageCms.applyTransform(image, transform)
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            pass  # a damaged profile, or one of another colour model: shown as if it had none
    return image.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(source):
        return None  # nothing to convert, and rounding must not touch a white of exactly 255
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.buildTransform(
        source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    )
