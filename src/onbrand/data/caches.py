"""Latents that other trainers have cached beside the images, read instead of encoding; never unpickled.

kohya's sd-scripts: `NAME_0512x0512_sd.npz`, `_sdxl.npz` or `NAME.npz` (keys latents, original_size; in later versions
they end in the latents' size). ai-toolkit: `_latent_cache/NAME_<md5>.safetensors` (key latent). Each is a draw from the
posterior of an image that may have been cropped, and none says of which weights. So each has to be of the whole image
at this size and no older than it, and the first CHECKED are compared with what the autoencoder itself gives.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from onbrand.data.addresses import Address
from onbrand.data.images import has_transparency, shown_size
from onbrand.data.records import Record
from onbrand.errors import OnbrandError, UnreadableImage

Trainer = Literal["kohya", "ai-toolkit"]
KNOWN = -30.0
"""Log-variance of latents of which nothing but one draw is known: the least that diffusers knows."""
CHECKED = 8
ALIKE = 0.9
"""The share of the variance of its own encoding that a cached draw must explain; scaled latents explain .3 of it."""
LARGEST = 2**26
"""Bytes of an array."""
_NAMES = {
    "kohya": (re.compile(r"(.+?)(?:_\d+x\d+_(sd|sdxl))?\.npz"),),
    "ai-toolkit": (re.compile(r"(.+)_()[0-9a-f]{32}\.safetensors"), re.compile(r"(.+)_()[\w-]{22}\.safetensors")),
}
"""Names of caches: the image's without its suffix, then the model's family; ai-toolkit's md5 in hex or in base 64."""


class _Unfit(ValueError):
    """Why a cache is not used, as what the images are that it concerns."""


class Caches:
    """What a trainer has cached of a model's latents, for images of one size."""

    def __init__(
        self, trainer: Trainer, size: tuple[int, int], shape: tuple[int, int, int], family: str, scale: float
    ) -> None:
        """size: (H, W) of the images; shape: (C, h, w) of their latents; family: "sd" or "sdxl", as kohya names
        it; scale: what the model multiplies latents by, which ai-toolkit has done already."""
        self.trainer, self.size, self.shape, self.family = trainer, size, shape, family
        self.count = 0
        self._scale, self._scales = 1.0, (1.0, scale) if trainer == "ai-toolkit" else (1.0,)
        self._folders: dict[str, dict[str, list[str]]] = {}
        self._unread: dict[str, list[str]] = defaultdict(list)
        self._lock = Lock()

    def check(self, records: Iterable[Record], encode: Callable[[Record, bytes], Tensor]) -> None:
        """Compares the first CHECKED caches with the model's own encoding.

        Args:
            records: the images.
            encode: an image and its bytes -> mean `(C, h, w)`.

        Raises:
            OnbrandError: there are none, or they are another model's, or of other images.
        """
        names: list[str] = []
        errors, variance = dict.fromkeys(self._scales, 0.0), 0.0
        for record in records:
            if len(names) == CHECKED:
                break
            try:
                if not self._files(record):
                    continue
                latents = self._read(record, content := record.read())
            except (_Unfit, UnreadableImage) as error:
                self._unread[str(error)].append(record.path)
                continue
            mean = encode(record, content).cpu()
            names.append(record.path)
            variance += float((mean - mean.mean((1, 2), keepdim=True)).square().sum())
            for scale in errors:
                errors[scale] += float((latents / scale - mean).square().sum())
        reasons = "; ".join(self.lines()) or "none is there"
        self._unread.clear()
        self._scale = min(errors, key=lambda scale: errors[scale])
        explained = 1 - errors[self._scale] / max(variance, 1e-12)
        if not names:
            raise OnbrandError(
                "latents", f"no cache of {self.trainer} can be used ({reasons}): leave latents_from out to encode"
            )
        if explained < ALIKE:
            raise OnbrandError(
                "latents",
                f"the caches of {self.trainer}, that of {names[0]} first, are not this model's, or of other images: "
                f"{len(names)} explain {explained:.2f} of its own encoding, {ALIKE} at least are needed. Leave "
                "latents_from out, or cache them anew",
            )

    def __call__(self, record: Record, content: bytes) -> Tensor | None:
        """The latents `(C, h, w)` of an image, unscaled; None if it has none that can be used, which `lines` says."""
        try:
            latents = self._read(record, content) / self._scale
        except (_Unfit, UnreadableImage) as error:
            with self._lock:
                self._unread[str(error)].append(record.path)
            return None
        with self._lock:
            self.count += 1
        return latents

    def lines(self) -> list[str]:
        """For each reason the images that were not read from a cache."""
        return [f"{len(paths)} images {reason}, as {min(paths)}" for reason, paths in sorted(self._unread.items())]

    def _read(self, record: Record, content: bytes) -> Tensor:
        """As it lies in the cache; _Unfit says why not."""
        files = self._files(record)
        if not files:
            raise _Unfit("without one")
        shown = shown_size(record.file, content)
        scale = min(side / own for side, own in zip(self.size, shown, strict=True))
        if tuple(round(own * scale) for own in shown) != self.size:
            raise _Unfit("of another ratio, which caches crop and onbrand pads")
        if has_transparency(content):
            raise _Unfit("with transparency, which caches do not lay over white")
        reason = ""
        for file in files:
            if file.stat().st_mtime_ns < record.file.stat().st_mtime_ns:
                reason = reason or "newer than their cache"
                continue
            try:
                latents = (_kohya if self.trainer == "kohya" else _ai_toolkit)(file, self.shape, shown)
                if not np.isfinite(latents).all():
                    raise _Unfit("not finite")
                return torch.from_numpy(latents.astype(np.float32))
            except (_Unfit, MemoryError) as error:
                reason = reason or f"whose cache is {error}"
            except Exception:  # numpy, zlib and zipfile raise whatever damaged input led them to
                reason = reason or "whose cache is damaged"
        raise _Unfit(reason)

    def _files(self, record: Record) -> list[Path]:
        """The caches beside an image, in the order of their names."""
        if record.table is not None or isinstance(record.file, Address):
            return []
        folder, name = os.path.split(record.path)
        folder = folder if self.trainer == "kohya" else os.path.join(folder, "_latent_cache")
        with self._lock:
            if folder not in self._folders:
                stems: dict[str, list[str]] = defaultdict(list)
                for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                    for pattern in _NAMES[self.trainer]:
                        if (match := pattern.fullmatch(file)) and match[2] in ("", None, self.family):
                            stems[match[1]].append(file)
                self._folders[folder] = stems
        return [Path(folder, file) for file in self._folders[folder].get(os.path.splitext(name)[0], [])]


def _kohya(file: Path, shape: tuple[int, int, int], shown: tuple[int, int]) -> np.ndarray:
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
        end = next((end for end in _ends(content) if _shape(content, f"latents{end}") == shape), None)
        if end is None:
            raise _Unfit(f"of another size or model, not {' x '.join(map(str, shape))}")
        size = tuple(int(side) for side in content[f"original_size{end}"]) if f"original_size{end}" in content else None
        if size and size != shown[::-1]:
            raise _Unfit("of an image of another size")
        return np.asarray(content[f"latents{end}"])


def _ends(content: Any) -> Iterator[str]:
    yield from (name.removeprefix("latents") for name in content.files if re.fullmatch(r"latents(_\d+x\d+)?", name))


def _shape(content: Any, name: str) -> tuple[int, ...] | None:
    """Of an array in an .npz, without reading it; None of one that is too large."""
    with content.zip.open(f"{name}.npy") as array:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(array)
    if dtype.kind != "f" or dtype.itemsize * int(np.prod(shape, dtype=object)) > LARGEST:
        return None
    return tuple(shape)


def _ai_toolkit(file: Path, shape: tuple[int, int, int], _: tuple[int, int]) -> np.ndarray:
    with safe_open(file, framework="pt") as content:
        about = {key: value.strip('"') for key, value in (content.metadata() or {}).items()}
        if "true" in (about.get("flip_x", "").lower(), about.get("flip_y", "").lower()):
            raise _Unfit("of a mirrored image")
        for side in ("width", "height"):
            if about.get(f"crop_{side}") != about.get(f"scale_to_{side}"):
                raise _Unfit("of a part of the image")
        if tuple(content.get_slice("latent").get_shape()) != shape:
            raise _Unfit(f"of another size or model, not {' x '.join(map(str, shape))}")
        return np.asarray(content.get_tensor("latent").float())
