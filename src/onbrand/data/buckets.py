"""Aspect-ratio buckets: the few sizes of equal area that photos are padded to, so that little of each is padding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from onbrand.data.addresses import ahead, threads_for
from onbrand.data.images import SMALLEST
from onbrand.data.latents import Store
from onbrand.data.records import Record
from onbrand.errors import OnbrandError

Size = tuple[int, int]
"""(H, W) in pixels."""
FLOOR = 50
"""Photos that a class has in a bucket, or else none: a mean of fewer shows single photos (`core.fit.FEW`)."""
MOST = 6
"""Buckets of a brand."""
STEEPEST = 4.0
"""The longer side of a bucket over the shorter one."""
WORTH = 0.05
"""A bucket is added if it takes this share of their area off the padding of FLOOR photos, or as much in all."""


@dataclass(frozen=True)
class Bucket:
    """Photos of one size, and their latents."""

    store: Store
    records: Sequence[Record]
    """Trained on."""
    validation: Sequence[Record] = ()
    """Of the validation loss."""

    @property
    def size(self) -> Size:
        """(H, W) that they are padded to."""
        return self.store.key.resolution


def padding(size: Size, bucket: Size) -> float:
    """The share of a bucket, in [0, 1), that is padding around an image (H, W)."""
    ratio = (size[0] * bucket[1]) / (size[1] * bucket[0])
    return 1 - min(ratio, 1 / ratio)


def bucket_of(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket with the least padding around an image (H, W); of two alike the first."""
    return min(buckets, key=lambda bucket: padding(size, bucket))


def ladder(size: Size, step: int) -> list[Size]:
    """The sizes that buckets are chosen from: `size` first, then those of other ratios with as large an area as it
    allows, their sides multiples of `step`, the nearest ratio first.

    Raises:
        OnbrandError: a side of `size` is no multiple of `step`.
    """
    height, width = size
    if height % step or width % step:
        raise OnbrandError(
            "option",
            f"bucket_reso_steps divides both sides of the images, {height} x {width}; got {step}: take a divisor, or "
            "another resolution",
        )
    area = height * width
    sides = {(side, area // side // step * step) for side in range(step, area // step + 1, step)}
    sides |= {(width, height) for height, width in sides}
    others = [pair for pair in sides if min(pair) >= SMALLEST and max(pair) <= STEEPEST * min(pair) and pair != size]
    return [size, *sorted(others, key=lambda pair: (round(padding(pair, size), 9), -pair[0] * pair[1], pair))]


def choose(
    sizes: Mapping[str, Sequence[Size]], size: Size, step: int, floor: int = FLOOR, most: int = MOST
) -> dict[str, list[Size]]:
    """The buckets of each class, greedily: each next one is that of the ladder which leaves the least padding.

    A class has a bucket only if `floor` of its photos lie in it; those of another are padded into the nearest that it
    has. A class of fewer photos has one, the best for all of them.

    Args:
        sizes: (H, W) of each class's photos; in which order does not matter.
        size: (H, W) that sets the buckets' area.
        step: of their sides.
        floor: photos.
        most: buckets in all.

    Returns:
        Class -> its buckets, in the order in which they were chosen. Photos go to them by `bucket_of`.
    """
    ratios = {name: np.sort([np.log(height / width) for height, width in own]) for name, own in sizes.items() if own}
    chosen: list[Size] = []
    buckets, least = dict.fromkeys(ratios, [size]), np.inf
    rungs = ladder(size, step)
    while len(chosen) < most:
        trials = [(*_cells(ratios, [*chosen, rung], floor), rung) for rung in rungs if rung not in chosen]
        if not trials:
            break
        cells, cost, rung = min(trials, key=lambda trial: round(trial[1], 6))
        if chosen and least - cost < WORTH * floor:
            break
        chosen, buckets, least = [*chosen, rung], cells, cost
    return buckets


def _cells(ratios: Mapping[str, np.ndarray], buckets: list[Size], floor: int) -> tuple[dict[str, list[Size]], float]:
    """Which of the buckets each class has, and the padding of all photos together, in photos."""
    cells: dict[str, list[Size]] = {}
    cost = 0.0
    for name, own in ratios.items():
        left = list(buckets)
        while True:
            logs = np.log([height / width for height, width in left])
            far = np.abs(own[:, None] - logs)
            counts = np.bincount(far.argmin(1), minlength=len(left))
            paid = (1 - np.exp(-far)).sum(0)
            if len(left) == 1 or counts.min() >= floor:
                break
            # the emptiest goes; where no bucket has enough, the one that suits the class best stays
            left.pop(int(counts.argmin()) if counts.max() >= floor else int(paid.argmax()))
        cells[name] = left
        cost += float((1 - np.exp(-far.min(1))).sum())
    return cells, cost


def by_bucket(
    records: Sequence[Record], buckets: Mapping[str, Sequence[Size]] | None, size: Size, step: int = 1
) -> dict[Size, list[Record]]:
    """The records of each bucket, that of the most first.

    Args:
        records: photos. One that cannot be read, or whose class has no bucket, is counted to the first bucket.
        buckets: of each class, as `choose` gives them; None: they are chosen for these records.
        size: (H, W), as in `choose`.
        step: as in `choose`.
    """
    sizes = list(ahead(attrgetter("size"), records, threads_for(records[0].file))) if records else []
    if buckets is None:
        by_class: dict[str, list[Size]] = {}
        for record, own in zip(records, sizes, strict=True):
            by_class.setdefault(record.class_name, []).extend([own] if own else [])
        buckets = choose(by_class, size, step)
    places = [
        bucket_of(own, buckets[record.class_name]) if own and buckets.get(record.class_name) else None
        for record, own in zip(records, sizes, strict=True)
    ]
    counts = Counter(filter(None, places))
    order = sorted(counts, key=lambda bucket: (-counts[bucket], bucket != size, bucket)) or [size]
    cells: dict[Size, list[Record]] = {bucket: [] for bucket in order}
    for record, place in zip(records, places, strict=True):
        cells[place or order[0]].append(record)
    return cells


def step_of(size: Size) -> int:
    """The step where none is asked for: 64, and less for small images or such whose sides it does not divide."""
    step = math.gcd(*size, 64)
    while step > max(8, min(size) // 8):
        step //= 2
    return step
