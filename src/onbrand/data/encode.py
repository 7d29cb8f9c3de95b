"""Records -> latents in a store, once: what is there already is skipped, so that a killed run goes on where it was."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from onbrand.data.addresses import ahead, threads_for
from onbrand.data.caches import KNOWN, Caches
from onbrand.data.images import WHITE, open_image, pad, to_range, to_tensor
from onbrand.data.latents import Store, Summary
from onbrand.data.records import Record
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import digest

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(B, 3, H, W) float32 in [-1, 1] on the CPU -> (mean, logvar), each (B, C, h, w), on any device."""
Pixels = np.ndarray
"""(H, W, 3) uint8."""
Examined = tuple[str | None, str | None, Pixels | Tensor | UnreadableImage | None]
"""(mark, key, pixels or a cache's latents): key None without bytes, pixels None if the store knows the key."""


def encode_all(
    records: Sequence[Record],
    encode: Encode,
    store: Store,
    batch: int = 16,
    progress: bool = True,
    rank: int = 0,
    world: int = 1,
    shard: int = 256,
    threads: int | None = None,
    caches: Caches | None = None,
) -> Summary:
    """Encodes those of `records` that `store` does not hold yet. A kill loses at most one shard's work.

    With `world` ranks, a rank takes every world-th run of `shard` records, and its Summary is of these; after all have
    ended, `store.reload()` and `store.look_up(records)` give the whole. The shards of a run are fixed slices of what
    it has to encode, each written as soon as it is full: a resumed run encodes the slices that are missing, in the same
    batches, to the same bytes. With another `batch`, `shard` or `world` latents agree to float tolerance.

    Threads fetch and decode ahead of the network. Processes gained nothing: Pillow decodes without the interpreter's
    lock, and processes have to send the pixels back.

    `caches`: latents that a trainer has left; they are checked first, and read where they can be used.

    `progress`: a bar with the rate, on stderr. `threads` of it (default: up to 8, or 16 for an address). OnbrandError
    if `encode` gives what cannot be latents; refused images raise nothing.
    """
    if not 0 <= rank < world or min(batch, shard) < 1:
        raise OnbrandError(
            "latents",
            f"needs 0 <= rank < world, batch >= 1 and shard >= 1; "
            f"got rank={rank}, world={world}, batch={batch}, shard={shard}",
        )
    runs = range(rank * shard, len(records), world * shard)
    own = [record for start in runs for record in records[start : start + shard]]
    began, encoded = time.perf_counter(), 0
    summary = Summary([], [], [])
    marks: dict[str, str] = {}
    writing = _Slice(store, encode, batch, rank)
    if caches:
        caches.check(records, partial(_encode_one, encode, store))
    threads = threads or (threads_for(own[0].file) if own else 1)
    examined = ahead(partial(_examine, store=store, caches=caches), own, threads, max(2 * batch, threads))
    bar = tqdm(total=len(own), desc="encode", unit=" images", disable=not progress)
    try:
        for record, (mark, key, pixels) in zip(own, examined, strict=True):
            bar.update()
            if mark and key:
                marks[mark] = key
            if key is None:  # no bytes to know it by: looked at anew in every run
                if isinstance(pixels, UnreadableImage):
                    summary.refused.append(pixels)
                continue
            if pixels is not None and key not in store and store.reason(key) is None and key not in writing:
                writing.add(record, key, pixels)
                encoded += isinstance(pixels, np.ndarray)
            reason = store.reason(key) or writing.refused.get(key)
            if reason is None:
                summary.used.append(record)
                summary.keys.append(key)
            else:
                summary.refused.append(UnreadableImage(record.file, reason))
                bar.set_postfix(refused=len(summary.refused), refresh=False)
            if len(writing) == shard:
                writing.write()
                store.digests.remember(marks, rank)
                marks = {}
        writing.write()
        store.digests.remember(marks, rank)
    finally:
        bar.close()
        examined.close()
    if caches:
        tqdm.write(f"{caches.count} latents read from the caches of {caches.trainer}", file=sys.stderr)
        for line in caches.lines():
            warnings.warn(f"not all latents are read from the caches of {caches.trainer}: {line}", stacklevel=2)
    return Summary(summary.used, summary.keys, summary.refused, encoded, time.perf_counter() - began)


class _Slice:
    """The shard being made: its images are encoded as soon as a batch is full, so that no more than one is held."""

    def __init__(self, store: Store, encode: Encode, batch: int, rank: int) -> None:
        self.store, self.encode, self.batch, self.rank = store, encode, batch, rank
        self._clear()

    def _clear(self) -> None:
        self.keys: dict[str, None] = {}
        self.refused: dict[str, str] = {}
        self._waiting: list[tuple[Record, Pixels]] = []
        self._parts: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.keys) + len(self.refused)

    def __contains__(self, key: str) -> bool:
        return key in self.keys or key in self.refused

    def add(self, record: Record, key: str, pixels: Pixels | Tensor | UnreadableImage) -> None:
        """Takes in one image, its latents from a cache, or the reason why it is none."""
        if isinstance(pixels, UnreadableImage):
            self.refused[key] = pixels.reason
            return
        self.keys[key] = None
        if isinstance(pixels, Tensor):
            self._encode()  # what came before: rows stand in the keys' order
            self._take("", pixels[None], torch.full_like(pixels[None], KNOWN))
            return
        self._waiting.append((record, pixels))
        if len(self._waiting) == self.batch:
            self._encode()

    def write(self) -> None:
        """Encodes what waits, writes the shard, begins the next."""
        if len(self):
            self._encode()
            parts = {name: torch.cat(values) for name, values in self._parts.items()}
            self.store.add(list(self.keys), parts, self.refused, self.rank)
        self._clear()

    def _encode(self) -> None:
        if not self._waiting:
            return
        names = [str(record.file) for record, _ in self._waiting]
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in self._waiting])).permute(0, 3, 1, 2)
        images = to_range(pixels.contiguous())
        self._waiting = []
        sides = {"": images, "_flipped": images.flip(-1)} if self.store.key.flip else {"": images}
        for end, side in sides.items():
            with torch.no_grad():
                mean, logvar = self.encode(side)
            _check(mean, logvar, names)
            self._take(end, mean, logvar)

    def _take(self, end: str, mean: Tensor, logvar: Tensor) -> None:
        self._parts.setdefault("mean" + end, []).append(mean.float().cpu())
        self._parts.setdefault("logvar" + end, []).append(logvar.float().cpu())


def _check(mean: Tensor, logvar: Tensor, names: list[str]) -> None:
    if mean.ndim != 4 or mean.shape != logvar.shape or len(mean) != len(names):
        raise OnbrandError(
            "latents",
            f"encode gives (mean, logvar), both (B, C, h, w), for B={len(names)} images; "
            f"got {tuple(mean.shape)} and {tuple(logvar.shape)}",
        )
    finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
    if not all(finite):
        raise OnbrandError(
            "latents",
            f"latents are finite; those of {names[finite.index(False)]} are not. Encode in float32: "
            "some VAEs overflow in half precision",
        )


def _encode_one(encode: Encode, store: Store, record: Record, content: bytes) -> Tensor:
    image = open_image(record.file, content, WHITE if store.key.background is None else store.key.background)
    with torch.no_grad():
        return encode(to_tensor(pad(image, store.key.resolution, store.key.background))[None])[0][0].float()


def _examine(record: Record, store: Store, caches: Caches | None = None) -> Examined:
    mark = store.digests.mark(record)  # before the bytes: a change in between then shows in the next mark
    former = store.digests.recall(mark)
    if former is not None and (former in store or store.reason(former) is not None):
        return mark, former, None
    try:
        content = record.read()
    except UnreadableImage as error:
        return None, None, error
    key = digest(content)
    if key in store or store.reason(key) is not None:
        return mark, key, None
    if caches and (latents := caches(record, content)) is not None:
        return mark, key, latents
    background = store.key.background
    try:
        image = open_image(record.file, content, WHITE if background is None else background)
    except UnreadableImage as error:
        return mark, key, error
    return mark, key, np.asarray(pad(image, store.key.resolution, background))
