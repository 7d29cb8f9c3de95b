"""Images encoded once: posterior mean and log-variance in shards on disk, found again by what the image holds."""

from __future__ import annotations

import json
import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from onbrand.data.digests import Digests
from onbrand.data.images import RGB
from onbrand.data.records import Record
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import digest, whole_file

PREPARATION = 1
"""Raised whenever the way a file becomes pixels changes, so that latents of before are not taken for those of now."""
FOLDER = "latents"
"""Name of the store in a brand's folder, or in a run's that has no prior."""
OPEN_SHARDS = 256
ABANDONED = 600
"""Seconds after which a half-written shard has no writer any more."""


@dataclass(frozen=True)
class Key:
    """Everything, beside the file's bytes, that a latent depends on. Each key has a folder of its own in the store."""

    vae: str
    """Fingerprint of the encoder."""
    resolution: tuple[int, int]
    """(H, W) of the padded images, pixels; multiples of the encoder's factor."""
    flip: bool = False
    """Whether every image is encoded mirrored as well."""
    background: RGB | None = None
    """What is padded with and lies under transparency; None: each image's own border, and white."""
    dtype: str = "float32"
    """On disk: float32, or float16 at half the size, which rounds each latent by up to 1/2048 of its value."""
    source: str = ""
    """The trainer whose caches were read instead of encoding (`data.caches`), if any."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise OnbrandError("latents", f"latents are kept as float32 or float16; got dtype={self.dtype!r}")
        if len(self.resolution) != 2 or min(self.resolution) < 1:
            raise OnbrandError("latents", f"a resolution is (H, W) in pixels, both >= 1; got {self.resolution}")

    @property
    def about(self) -> dict[str, Any]:
        """What key.json says."""
        about = asdict(self) | {"preparation": PREPARATION}
        return about if self.source else {name: value for name, value in about.items() if name != "source"}

    @property
    def digest(self) -> str:
        """sha256 (hex) of the key."""
        about = self.about
        about["ground"] = about.pop("background")  # its name when stores were first written, which are found by this
        return digest(json.dumps(about, sort_keys=True).encode())


@dataclass(frozen=True)
class Summary:
    """What became of the records asked about."""

    used: list[Record]
    """Those with latents, in the records' order."""
    keys: list[str]
    """For each of `used`, what `Store.get` finds its latents by: sha256 of the file's bytes."""
    refused: list[UnreadableImage]
    encoded: int = 0
    """Images encoded in this run, not found in the store."""
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = f", {self.encoded / self.seconds:.1f} a second" if self.encoded and self.seconds else ""
        head = f"{len(self.used)} images used ({self.encoded} encoded now{rate}), {len(self.refused)} refused"
        return "\n  ".join([head + (":" if self.refused else ""), *map(str, self.refused)])


class Store:
    """Latents in `folder`/<key>/: shards {mean, logvar[, mean_flipped, logvar_flipped]} (N, C, h, w), written once.

    A shard is written under another name, synced and renamed, so that it is whole or absent; its header lists the
    images it holds, those refused, and a checksum of every row, which is compared whenever the row is read. Its name is
    its list's and its writer's rank, so that ranks never collide.
    """

    def __init__(self, folder: str | Path, key: Key) -> None:
        self.key = key
        self.folder = Path(folder) / key.digest[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "key.json").exists():
            _write(self.folder / "key.json", json.dumps(key.about, indent=2).encode())
        for file in self.folder.glob(".*.tmp"):
            try:
                if time.time() - file.stat().st_mtime > ABANDONED:
                    file.unlink()
            except OSError:
                continue  # its writer, or another rank, was faster; or the store may only be read
        self.digests = Digests(Path(folder))
        self._shards: list[Path] = []
        self._sums: list[dict[str, array[int]]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._reasons: dict[str, str] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._layouts: dict[int, dict[str, tuple[int, tuple[int, ...]]]] = {}
        self.reload()

    def reload(self) -> None:
        """Takes in the shards that were written since, by any rank."""
        shards = set(self._shards)
        for file in sorted(self.folder.glob("*.safetensors")):
            if file in shards:
                continue
            self._take(file, self._header(file))
        self.digests.reload()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def reason(self, key: str) -> str | None:
        """Why the image of this key was refused, if it was."""
        return self._reasons.get(key)

    def add(self, keys: Sequence[str], parts: Mapping[str, Tensor], refused: Mapping[str, str], rank: int = 0) -> Path:
        """Writes one shard: row i of each part belongs to keys[i]; `refused` maps the others' keys to reasons."""
        header: dict[str, Any] = {"keys": list(keys), "refused": dict(refused)}
        file = self.folder / f"{rank:03d}-{_name(header)}.safetensors"
        dtype = getattr(torch, self.key.dtype)
        rows = {part: value.to(dtype).contiguous() for part, value in parts.items()}
        header["crc32"] = {part: [_checksum(row) for row in value] for part, value in rows.items()}
        # one entry only: safetensors does not keep the order of several, and equal shards are to be equal bytes
        _write(file, save(rows, metadata={"onbrand": json.dumps(header, sort_keys=True)}))
        if file not in self._shards:
            self._take(file, header)
        return file

    def get(self, keys: Sequence[str], flipped: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """(mean, logvar), each (B, C, h, w) float32, unscaled, for any keys in any order; only these rows are read.

        flipped: for each key whether the mirrored image's; needs a store with flip=True.
        """
        sides = [False] * len(keys) if flipped is None else list(flipped)
        if any(sides) and not self.key.flip:
            raise OnbrandError("latents", "a store with flip=False holds no mirrored images. Encode with flip=True")
        means, logvars = [], []
        for key, side in zip(keys, sides, strict=True):
            end = "_flipped" if side else ""
            means.append(self._row(key, "mean" + end))
            logvars.append(self._row(key, "logvar" + end))
        return torch.cat(means).float(), torch.cat(logvars).float()

    def means(self, keys: Sequence[str], rows: int) -> Iterator[tuple[int, Tensor]]:
        """(number of its first key, means (B, C, h, w) as they lie on disk, unscaled) of keys in order, `rows` at once.

        With key.flip each batch is followed by its mirrored images'. Log-variances are not touched. The next batch is
        read and its checksums are compared while one is in use; no more than two are in memory.
        """
        parts = ("mean", "mean_flipped") if self.key.flip else ("mean",)
        with ThreadPoolExecutor(1) as reader:
            batches = (
                (start, reader.submit(self.read, keys[start : start + rows], part))
                for start in range(0, len(keys), rows)
                for part in parts
            )
            ahead = next(batches, None)
            while ahead:
                start, batch = ahead[0], ahead[1].result()
                ahead = next(batches, None)
                yield start, batch

    def by_shard(self, keys: Sequence[str]) -> dict[Path, list[int]]:
        """The shards that hold any of keys, in the order of their names: numbers of the keys, in that of the rows."""
        files: dict[Path, list[int]] = {}
        for i in sorted(range(len(keys)), key=lambda i: self._place(keys[i])):
            files.setdefault(self._shards[self._place(keys[i])[0]], []).append(i)
        return dict(sorted(files.items()))

    def contents(self, keys: Sequence[str]) -> list[list[Any]]:
        """What identifies the means of each key to the bit: the key, then checksums; of shards without, their time."""
        contents: list[list[Any]] = []
        for key in keys:
            number, row = self._place(key)
            sums = {part: rows for part, rows in self._sums[number].items() if part.startswith("mean")}
            marks = [rows[row] for _, rows in sorted(sums.items())] or [self._shards[number].stat().st_mtime_ns]
            contents.append([key, *marks])
        return contents

    def look_up(self, records: Sequence[Record]) -> Summary:
        """Used and refused among `records`, whichever rank encoded them. OnbrandError if one is new or changed."""
        used, keys, refused, missing, new = [], [], [], [], {}
        for record in records:
            mark = self.digests.mark(record)
            key = self.digests.recall(mark)
            if key is None:
                try:
                    key = digest(record.read())
                except UnreadableImage as error:
                    refused.append(error)
                    continue
                if mark:
                    new[mark] = key
            if key in self._places:
                used.append(record)
                keys.append(key)
            elif key in self._reasons:
                refused.append(UnreadableImage(record.file, self._reasons[key]))
            else:
                missing.append(record.file)
        self.digests.hold(new)
        if missing:
            raise OnbrandError(
                "latents",
                f"latents are read after encoding; {len(missing)} of {len(records)} images are new or "
                f"changed ({missing[0]} first). Run encode_all again",
            )
        return Summary(used, keys, refused)

    def _header(self, file: Path) -> dict[str, Any]:
        """What a shard says that it holds; OnbrandError if that cannot be, or is not what it was called by."""
        ends = ("", "_flipped") if self.key.flip else ("",)
        parts = {part + end for part in ("mean", "logvar") for end in ends}
        try:
            with safe_open(file, framework="pt") as shard:
                header: dict[str, Any] = json.loads(shard.metadata()["onbrand"])
                rows = {part: shard.get_slice(part).get_shape()[0] for part in shard.keys()}  # noqa: SIM118
            count = len(header["keys"])
            if _name(header) not in file.stem or not header.keys() <= {"keys", "refused", "crc32"}:
                raise ValueError("its list of images has changed")
            if rows != (dict.fromkeys(parts, count) if count else {}):
                raise ValueError(f"{rows} rows of {count} images")
            sums = {part: array("I", values) for part, values in header.get("crc32", {}).items()}
            if sums and {part: len(values) for part, values in sums.items()} != rows:
                raise ValueError("its checksums have changed")
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
            raise OnbrandError(
                "latents", f"{file} is no whole shard of latents ({error}). Delete it; encode again"
            ) from error
        return header | {"crc32": sums}

    def _place(self, key: str) -> tuple[int, int]:
        """(number of the shard, row) of a key; OnbrandError if there is none."""
        if key not in self._places:
            raise OnbrandError(
                "latents", f"no latents of image {key[:12]} in {self.folder}. Encode it first (encode_all)"
            )
        return self._places[key]

    def _row(self, key: str, part: str) -> Tensor:
        """The row `(1, C, h, w)` of a key, as it was written; shards of before have no checksums."""
        number, row = self._place(key)
        file, sums = self._shards[number], self._sums[number]
        try:
            value: Tensor = self._shard(file).get_slice(part)[row : row + 1]
        except (SafetensorError, OSError) as error:
            raise OnbrandError("latents", f"{file} cannot be read ({error}). Delete it; encode again") from error
        if sums and _checksum(value) != sums[part][row]:
            raise _changed(file, part, key)
        return value

    def read(self, keys: Sequence[str], part: str) -> Tensor:
        """The rows `(B, C, h, w)` of a part of keys, as they lie on disk, by as few reads as their places allow."""
        places = [self._place(key) for key in keys]
        shape = self._layout(places[0][0])[part][1]
        rows = np.empty((len(keys), *shape), self.key.dtype)
        begin = 0
        while begin < len(keys):
            number, row = places[begin]
            end = begin + 1
            while end < len(keys) and places[end] == (number, row + end - begin):
                end += 1
            file, sums, (offset, its) = self._shards[number], self._sums[number], self._layout(number)[part]
            run = rows[begin:end]
            try:
                with open(file, "rb") as content:
                    content.seek(offset + row * rows[0].nbytes)
                    if its != shape or content.readinto(run.data.cast("B")) != run.nbytes:
                        raise OSError(f"latents of {its}, not {shape}, or it ends too soon")
            except OSError as error:
                raise OnbrandError("latents", f"{file} cannot be read ({error}). Delete it; encode again") from error
            for i in range(begin, end) if sums else ():
                if zlib.crc32(rows[i]) != sums[part][row + i - begin]:
                    raise _changed(file, part, keys[i])
            begin = end
        return torch.from_numpy(rows)

    def _layout(self, number: int) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each part's rows begin in a shard, and the shape of one."""
        if number not in self._layouts:
            file = self._shards[number]
            try:
                with open(file, "rb") as content:
                    size = int.from_bytes(content.read(8), "little")
                    entries = json.loads(content.read(size))
                self._layouts[number] = {
                    name: (8 + size + entry["data_offsets"][0], tuple(entry["shape"][1:]))
                    for name, entry in entries.items()
                    if name != "__metadata__"
                }
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise OnbrandError("latents", f"{file} cannot be read ({error}). Delete it; encode again") from error
        return self._layouts[number]

    def _take(self, file: Path, header: Mapping[str, Any]) -> None:
        number = len(self._shards)
        self._shards.append(file)
        self._sums.append({part: array("I", values) for part, values in header["crc32"].items()})
        for row, key in enumerate(header["keys"]):
            self._places.setdefault(key, (number, row))
        self._reasons.update(header["refused"])

    def _shard(self, file: Path) -> Any:
        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open[file] = safe_open(file, framework="pt")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[file]


def iterate(store: Store, records: Sequence[Record], batch: int = 64) -> Iterator[tuple[Tensor, list[Record]]]:
    """(means (B, C, h, w) as they lie on disk, unscaled; their records), `batch` at a time in the records' order.

    Refused images are passed over. With store.key.flip each batch is followed by its mirrored images' latents.
    """
    summary = store.look_up(records)
    for start, mean in store.means(summary.keys, batch):
        yield mean, summary.used[start : start + batch]


def _changed(file: Path, part: str, key: str) -> OnbrandError:
    return OnbrandError(
        "latents",
        f"{file} has changed since it was written: {part} of image {key[:12]} has another checksum. Delete the file; "
        "the same command encodes its images again",
    )


def _name(header: Mapping[str, Any]) -> str:
    """What a shard is called by: the images that it lists."""
    images = {name: header[name] for name in ("keys", "refused")}
    return digest(json.dumps(images, sort_keys=True).encode())[:24]


def _checksum(row: Tensor) -> int:
    return zlib.crc32(row.contiguous().numpy().data)


def _write(file: Path, content: bytes) -> None:
    """The file whole or not at all, also after a kill or a power cut."""
    with whole_file(file, durable=True) as draft:
        draft.write_bytes(content)
