"""Sums of a shard's latents by class, in a small file beside it: what moments are fitted from, without its latents.

Merging is adding, in float64. Photos that come in are in shards of their own; a shard of which photos were taken out,
or came into another class, is summed anew, and not subtracted from, so that a prior depends on the photos alone and
not on how they came to be there. There are none for components: a sketch of 128 columns in float64 is as large as a
shard of 256 latents in float16.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
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
TOGETHER = 64
"""Shards whose sums would not be small, that are summed together."""
NUMBERS = 2**20
"""Of a batch that a thread reads and sums."""
THREADS = 8
"""At most: memory gives no more."""


def sum_shards(
    store: Store, keys: Sequence[str], classes: Sequence[str], shape: Sequence[int], rank: int = 0, world: int = 1
) -> Iterator[Fitter]:
    """Fitters of k = 0, each of a shard or of several, that together have seen `keys`.

    They have seen the means as they lie in the store, unscaled. What was summed of the very same means is read. Else
    they are, and their sums are left for the next time. Shards of so many classes that sums would not be small leave
    none, and are summed several at once. Of `world` ranks each sums every world-th shard.

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

    def size(file: Path) -> int:
        return file.stat().st_size if file.exists() else 0  # reading says what is wrong

    def small(shard: tuple[Path, Sequence[int]]) -> bool:
        return SMALL * 8 * math.prod(shape) * len({classes[i] for i in shard[1]}) <= size(shard[0])

    def sum_one(file: Path, places: Sequence[int]) -> Fitter:
        return _sum_shard(store, file, [keys[i] for i in places], [classes[i] for i in places], shape)

    def sum_several(parts: Sequence[tuple[Path, Sequence[int]]]) -> Fitter:
        places = [i for _, own in parts for i in own]
        return _sum(store, [keys[i] for i in places], [classes[i] for i in places], shape)

    rest = [shard for shard in shards if not small(shard)]
    jobs = [partial(sum_one, *shard) for shard in shards if small(shard)]
    jobs += [partial(sum_several, rest[i : i + TOGETHER]) for i in range(0, len(rest), TOGETHER)]
    parts: deque[Future[Fitter]] = deque()
    try:  # a thread alone with a shard is faster than all threads at one
        with ThreadPoolExecutor(min(threads, THREADS), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for job in jobs:
                parts.append(pool.submit(job))
                if len(parts) > min(threads, THREADS):
                    yield parts.popleft().result()
            while parts:
                yield parts.popleft().result()
    finally:
        torch.set_num_threads(threads)  # of threads that begin later


def _sum_shard(store: Store, file: Path, keys: Sequence[str], classes: Sequence[str], shape: Sequence[int]) -> Fitter:
    """The fitter of one shard, which holds all of `keys`: read if it was left beside it, else left there."""
    groups: dict[str, list[str]] = {}
    for key, name in zip(keys, classes, strict=True):
        groups.setdefault(name, []).append(key)
    marks = {name: digest((FORMAT, store.contents(group))) for name, group in groups.items()}
    beside = file.parent / FOLDER / file.name
    part = _read(beside, marks)
    if part is None or part.shape != tuple(shape):
        part = _sum(store, keys, classes, shape)
        _write(beside, part, marks)
    return part


def _sum(store: Store, keys: Sequence[str], classes: Sequence[str], shape: Sequence[int]) -> Fitter:
    """The fitter that has seen `keys`, class by class."""
    order = sorted(range(len(keys)), key=lambda i: classes[i])
    part, sides = Fitter(shape), ("mean", "mean_flipped") if store.key.flip else ("mean",)
    batch = max(1, NUMBERS // part.dimensions)
    for start, side in product(range(0, len(keys), batch), sides):
        own = order[start : start + batch]
        part.update(store.read([keys[i] for i in own], side), [classes[i] for i in own])
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
