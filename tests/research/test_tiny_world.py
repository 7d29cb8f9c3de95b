"""The world that onbrand-tiny learns from: fixed by its seed, truthful in words, and not the brand's."""

from typing import Any

import numpy as np
import pytest

from onbrand.datasets.garments import garments


@pytest.fixture(scope="module")
def world(tiny_tool: Any) -> Any:
    return tiny_tool("world")


@pytest.fixture(scope="module")
def cuts(world: Any) -> Any:
    images, rows = garments("validation")
    grey, kinds = world.fashion.photos("test")
    return world.Cuts([world.cut(p) for p in images[:60]], rows[:60], grey, kinds)


def draw(world: Any, cuts: Any, seed: Any, count: Any = 60) -> Any:
    return [world.off_brand(cuts, i, np.random.default_rng([seed, i])) for i in range(count)]


def test_an_image_is_fixed_by_seed_and_index(world: Any, cuts: Any) -> None:
    first, again, other = draw(world, cuts, 1, 8), draw(world, cuts, 1, 8), draw(world, cuts, 2, 8)
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a[0], b[0]) and a[1:] == b[1:]
        assert not np.array_equal(a[0], c[0])


def test_captions_say_what_their_truth_says(world: Any, cuts: Any) -> None:
    count = 0
    for _, text, truth in draw(world, cuts, 3, 200):
        assert truth["colour"] in text
        if truth.get("second_colour", "none") != "none":
            assert truth["second_colour"] in text
        if "ground" in truth:
            assert f"{truth['ground']} background" in text
        assert ("background" in text) == ("ground" in truth)
        count += "ground" in truth
    assert 70 < count < 130  # half of them


def test_garments_are_cut_out_whole_and_the_background_shows_through(world: Any, cuts: Any) -> None:
    for tile, row in zip(cuts.tiles[:20], cuts.rows, strict=False):
        alpha = np.asarray(tile)[..., 3]
        assert alpha[:4].max() == 0 and 0.05 < (alpha == 255).mean() < 0.75, row["kind"]
    images = [image for image, _, truth in draw(world, cuts, 4, 100) if truth["view"] != "object"]
    corners = np.stack([p[[0, 0, -1, -1], [0, -1, 0, -1]] for p in images])
    assert (corners != 255).any(2).mean() > 0.6  # the brand's would all be 255


def test_workers_draw_the_same(world: Any, cuts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "sources", lambda *arguments: cuts)
    monkeypatch.setattr(world, "PART", 7)
    one, two = (world.draw(20, 5, workers=workers) for workers in (0, 2))
    assert np.array_equal(one[0], two[0]) and one[1:] == two[1:] and len(one[1]) == 20
