"""Buckets: multiples of the step, no larger than the size, where a class has photos enough, the least padding."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from onbrand.data.buckets import MOST, STEEPEST, bucket_of, choose, ladder, padding
from worlds import raises


def photos(seed: int, ratios: list[float], count: int) -> list[tuple[int, int]]:
    """Sizes of about these ratios, as catalogues have them."""
    draw = random.Random(seed)
    return [(round(draw.randint(300, 3000) * draw.choice(ratios)) or 1, draw.randint(300, 3000)) for _ in range(count)]


@pytest.mark.parametrize(
    ("size", "step"), [((512, 512), 64), ((1024, 1024), 64), ((768, 512), 64), ((128, 128), 16), ((24, 24), 8)]
)
def test_a_ladder_is_of_one_area_and_step(size: tuple[int, int], step: int) -> None:
    rungs = ladder(size, step)
    assert rungs[0] == size and len(set(rungs)) == len(rungs) > 2
    assert all(not height % step and not width % step for height, width in rungs)
    assert all(height * width <= size[0] * size[1] for height, width in rungs)
    assert all(max(rung) <= STEEPEST * min(rung) for rung in rungs)
    assert {(width, height) for height, width in rungs[1:]} <= {*rungs, size[::-1]}
    gaps = [padding(rung, size) for rung in rungs]
    assert all(near <= far + 1e-9 for near, far in pairwise(gaps))


@pytest.mark.parametrize(("size", "step"), [((512, 500), 64), ((24, 24), 16), ((16, 16), 5)])
def test_a_step_that_does_not_divide_the_size_is_refused(size: tuple[int, int], step: int) -> None:
    with raises("option", "bucket_reso_steps", step, size[0], size[1]):
        ladder(size, step)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_the_photos_every_class_has_enough_in_each_of_its_buckets(seed: int) -> None:
    draw = random.Random(seed)
    ratios = [draw.uniform(0.2, 5) for _ in range(draw.randint(1, 8))]
    sizes = {str(n): photos(seed + n, ratios, draw.choice([1, 7, 49, 50, 51, 120, 400])) for n in range(3)}
    floor = draw.choice([1, 10, 50])
    buckets = choose(sizes, (512, 512), 64, floor)
    assert set(buckets) == set(sizes)
    assert len({bucket for own in buckets.values() for bucket in own}) <= MOST
    for name, own in sizes.items():
        counts = {bucket: 0 for bucket in buckets[name]}
        for one in own:
            counts[bucket_of(one, buckets[name])] += 1
        assert len(counts) == 1 or min(counts.values()) >= floor, (name, counts)
        assert len(counts) == 1 or len(own) >= 2 * floor
    shuffled = {name: draw.sample(own, len(own)) for name, own in reversed(sizes.items())}
    assert choose(shuffled, (512, 512), 64, floor) == buckets
    whole = sum(padding(one, (512, 512)) for own in sizes.values() for one in own)
    cost = sum(padding(one, bucket_of(one, buckets[name])) for name, own in sizes.items() for one in own)
    assert cost <= whole + 1e-6


def test_two_ratios_have_two_buckets_and_a_class_of_few_is_padded_into_the_nearest() -> None:
    square, wide = [(900, 900)] * 80, [(600, 1200)] * 70
    assert choose({"a": square}, (512, 512), 64) == {"a": [(512, 512)]}
    buckets = choose({"a": square + wide, "b": [(500, 1000)] * 10 + [(800, 800)] * 60}, (1024, 1024), 64)
    assert set(buckets["a"]) == {(1024, 1024), (704, 1472)} or set(buckets["a"]) == {(1024, 1024), (704, 1408)}
    assert buckets["b"] == [(1024, 1024)]  # ten of them lie nearer to the wide one, and are too few for it
    assert choose({"a": wide + [(1000, 1000)] * 49}, (512, 512), 64)["a"] != [(512, 512)]
    assert len(choose({"a": wide + [(1000, 1000)] * 49}, (512, 512), 64)["a"]) == 1
    assert choose({"a": wide, "b": [(1000, 500)] * 3}, (512, 512), 64)["b"] == choose({"a": wide}, (512, 512), 64)["a"]


@pytest.mark.parametrize(
    ("size", "bucket"), [((10, 10), (24, 24)), ((1000, 500), (32, 16)), ((5, 50), (16, 32)), ((1, 1), (24, 24))]
)
def test_a_photo_goes_where_the_least_is_padded(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(size, [(24, 24), (32, 16), (16, 32)]) == bucket


def test_nothing_to_choose_for() -> None:
    assert choose({}, (512, 512), 64) == {} == choose({"a": []}, (512, 512), 64)
