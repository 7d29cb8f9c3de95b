"""Sums of a shard's latents by class, in a small file beside it: what moments are fitted from, without its latents.

Merging is adding, in float64. Photos that come in are in shards of their own; a shard of which photos were taken out,
or came into another class, is summed anew, and not subtracted from, so that a prior depends on the photos alone and
not on how they came to be there. There are none for components: a sketch of 128 columns in float64 is as large as a
shard of 256 latents in float16.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from onbrand.core.fit import Fitter, Sums
from onbrand.data.latents import Store
from onbrand.errors import OnbrandError
from onbrand.io import digest, whole_file

FORMAT = 2
"""Raised whenever other numbers are summed, so that sums of before are not taken for those of now."""
FOLDER = "sums"
"""In the folder of the shards."""
SMALL = 16
"""Sums are left beside a shard that is larger by this factor at least; of many classes, they would not be small."""
NUMBERS = 2**20
"""Of a batch that a thread reads and sums."""
THREADS = 8
"""At most: memory gives no more."""


def sum_shards(
    store: Store, keys: Sequence[str], classes: Sequence[str], shape: Sequence[int], rank: int = 0, world: int = 1
) -> Iterator[Fitter]:
    """For each shard that holds any of `keys`, in the order of their names, a fitter of k = 0 that has seen these.

    It has seen the means as they lie in the store, unscaled. What was summed of the very same means is read. Else they
    are, and their sums are left for the next time; of `world` ranks each does so for every world-th shard.

    Args:
        store: the latents.
        keys: of photos; one that is there twice counts twice.
        classes: the class of each.
        shape: (C, h, w) of a mean.
        rank: of this process.
        world: number of processes.
    """
    shards = list(store.by_shard(keys).items())[rank::world]
    threads = torch.get_num_threads()

    def sum_shard(file: Path, places: Sequence[int]) -> Fitter:
        return _sum_shard(store, file, [keys[i] for i in places], [classes[i] for i in places], shape)

    parts: deque[Future[Fitter]] = deque()
    try:  # a thread alone with a shard is faster than all threads at one
        with ThreadPoolExecutor(min(threads, THREADS), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for shard in shards:
                parts.append(pool.submit(sum_shard, *shard))
                if len(parts) > min(threads, THREADS):
                    yield parts.popleft().result()
            while parts:
                yield parts.popleft().result()
    finally:
        torch.set_num_threads(threads)  # of threads that begin later


def _sum_shard(store: Store, file: Path, keys: Sequence[str], classes: Sequence[str], shape: Sequence[int]) -> Fitter:
    """The fitter of one shard, which holds all of `keys`."""
    groups: dict[str, list[str]] = {}
    for key, name in zip(keys, classes, strict=True):
        groups.setdefault(name, []).append(key)
    marks = {name: digest((FORMAT, store.contents(group))) for name, group in groups.items()}
    beside = file.parent / FOLDER / file.name
    part = _read(beside, marks)
    if part is None or part.shape != tuple(shape):
        part, sides = Fitter(shape), ("mean", "mean_flipped") if store.key.flip else ("mean",)
        batch = max(1, NUMBERS // part.dimensions)
        for start, side in product(range(0, len(keys), batch), sides):
            own = slice(start, start + batch)
            part.update(store.read(keys[own], side), classes[own])
        if SMALL * 8 * part.dimensions * len(groups) <= file.stat().st_size:
            _write(beside, part, marks)
    return part


def _read(file: Path, marks: Mapping[str, str]) -> Fitter | None:
    """The sums of classes by their marks; None if there are none of these, or the file is damaged."""
    try:
        with safe_open(file, framework="pt") as content:
            seal, state = content.metadata()["onbrand"], {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        named = {field: state[field] for field in ("shape", "k")}
        for name, mark in marks.items():
            named |= {f"{field}/{name}": state[f"{field}/{mark}"] for field in Sums.__dataclass_fields__}
        return Fitter.from_state(named) if seal == _seal(state) else None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, OnbrandError):
        return None


def _write(file: Path, fitter: Fitter, marks: Mapping[str, str]) -> None:
    state = {}
    for entry, tensor in fitter.state().items():
        field, _, name = entry.partition("/")
        state[f"{field}/{marks[name]}" if name else field] = tensor.contiguous()
    with suppress(OSError), whole_file(file) as draft:  # else they are summed again
        draft.write_bytes(save(state, metadata={"onbrand": _seal(state)}))


def _seal(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of all tensors, by which a file is known from what a disk has changed."""
    return digest([(name, digest(tensor.numpy().tobytes())) for name, tensor in sorted(state.items())])
