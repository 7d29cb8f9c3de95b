"""Background and place of the product in closed form, backgrounds that are off, and the table of properties."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from violations import on_background, on_gradient, on_noise

from onbrand.comparison.tables import JUDGED, OVERALL, Line, markdown, table_of
from onbrand.evaluation.check import judge_images, spread_of
from onbrand.evaluation.likelihood import class_numbers
from onbrand.evaluation.loading import Images
from onbrand.evaluation.properties import ALL, PROPERTIES, SLACK, WORDS, Brand, measure
from onbrand.evaluation.segmentation import cut
from worlds import raises, tiny_pipeline, tiny_prior


def box(left: Any, right: Any, top: Any, bottom: Any, size: Any = 64, colour: Any = (0.7, 0.2, 0.1)) -> Any:
    image = torch.ones(1, 3, size, size)
    image[:, :, top:bottom, left:right] = torch.tensor(colour).view(3, 1, 1)
    return image


def test_place_of_a_box_in_closed_form() -> None:
    numbers = measure(box(10, 40, 4, 60))
    assert numbers["centre_x"].item() == pytest.approx((10 + 40) / 128 - 0.5)
    assert numbers["centre_y"].item() == pytest.approx(0.0)
    assert numbers["margin"].item() == pytest.approx(4 / 64)
    assert numbers["fill"].item() == pytest.approx(56 / 64) and numbers["market"].item() == 1
    assert numbers["border_product"].item() == 0


def test_place_is_in_shares_of_a_frame_of_any_shape() -> None:
    image = torch.ones(1, 3, 32, 64)
    image[:, :, 4:28, 0:32] = 0.0
    numbers = measure(image)
    assert numbers["fill"].item() == pytest.approx(24 / 32) and numbers["centre_x"].item() == pytest.approx(-0.25)
    assert numbers["margin"].item() == 0 and numbers["border_product"].item() == pytest.approx(24 / (2 * (32 + 64) - 4))
    assert numbers["market"].item() == 0


def test_background_of_a_box_in_closed_form() -> None:
    numbers = measure(box(16, 48, 16, 48))
    assert numbers["background_share"].item() == pytest.approx(0.75)
    for name in ("background_near", "background_border", "background_pure"):
        assert numbers[name].item() == 1
    assert (
        numbers["background_mean"].item() == pytest.approx(100, abs=0.01) and numbers["background_spread"].item() < 0.05
    )


def test_a_background_off_by_two_levels_is_near_and_not_pure() -> None:
    numbers = measure(on_background(box(16, 48, 16, 48), (253, 253, 253)))
    assert numbers["background_near"].item() == 1 and numbers["background_pure"].item() == 0
    assert numbers["background_mean"].item() == pytest.approx(99.3, abs=0.1)


@pytest.mark.parametrize(
    ("violate", "most"),
    [
        (lambda p: on_background(p, (240, 240, 240)), 0.0),
        (lambda p: on_background(p, (225, 238, 255)), 0.0),
        (lambda p: on_background(p, (40, 60, 200)), 0.0),
        (lambda p: on_gradient(p, 200), 0.45),
        (lambda p: on_noise(p, 190), 0.35),
    ],
    ids=["240", "tinted", "blue", "gradient", "busy"],
)
def test_a_background_that_is_off_is_not_near(violate: Any, most: Any) -> None:
    numbers = measure(violate(box(16, 48, 8, 56)))
    assert min(numbers["background_near"].item(), numbers["background_border"].item()) <= most


def test_the_brands_background_need_not_be_white() -> None:
    grey = on_background(box(16, 48, 16, 48), (240, 240, 240))
    assert measure(grey, (240, 240, 240))["background_near"].item() == 1
    assert measure(box(16, 48, 16, 48), (240, 240, 240))["background_near"].item() == 0


@pytest.mark.parametrize("edges", [(0, 40, 8, 56), (24, 64, 8, 56), (8, 56, 0, 40), (8, 56, 24, 64)])
def test_a_product_may_touch_one_side(edges: Any) -> None:
    numbers = measure(box(*edges))
    assert numbers["background_near"].item() == 1 and numbers["background_border"].item() > 0.97
    assert numbers["margin"].item() == 0 and numbers["border_product"].item() > 0.15


def test_a_blank_image_has_no_place_and_a_perfect_background() -> None:
    numbers = measure(torch.ones(1, 3, 32, 32))
    assert numbers["background_near"].item() == 1
    assert all(numbers[name].isnan().item() for name in ("centre_x", "margin", "fill", "market", "light_mean"))


def test_no_images_are_refused() -> None:
    with raises("value", "measure", "none"):
        measure(torch.zeros(0, 3, 16, 16))


def test_every_number_of_the_table_is_measured_and_belongs_to_one_property() -> None:
    pose = torch.full((1, 32, 32), 0.5)
    names = measure(box(16, 48, 16, 48), poses=pose).keys()
    likelihoods = class_numbers(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 4).keys()
    for one in PROPERTIES:
        assert set(one.numbers) <= (names if one.numbers_of else likelihoods), one.name
        if one.numbers_of:
            columns = one.numbers_of(cut(box(16, 48, 16, 48)), Brand(poses=pose))
            assert set(one.numbers) <= set(columns), "by its own function"
    numbers = [number for one in PROPERTIES for number in one.numbers]
    assert len(numbers) == len(set(numbers)) and list(SLACK) == numbers


def test_what_a_check_and_a_comparison_say_comes_from_the_table(reference: Any, held_out: Any, tmp_path: Path) -> None:
    images = Images([f"{i}.png" for i in range(20)], [], held_out[:20], [""] * 20, [""] * 20)
    content = judge_images(images, {(held_out.shape[2], held_out.shape[3]): reference}, None, None)
    cell = (tiny_prior(tiny_pipeline(), ("a",)), torch.rand(20, 4, 8, 8), ["a"] * 20)
    content["measures"] = spread_of([cell], {})
    entries = content["properties"] | content["measures"]
    assert set(entries) == {"background", "centring", "cropping", "fill", "light", "diversity", "frechet"}
    assert {name: (entry["title"], entry["rule"]) for name, entry in entries.items()} == {n: WORDS[n] for n in entries}
    order = [name for name in WORDS if name in entries]
    assert [*content["properties"], *content["measures"]] == order
    (tmp_path / "check.json").write_text(json.dumps({"schema": 2, **content}))
    line = Line("plain", "plain", "noise", tmp_path)
    head = [markdown(table_of([line], {}), [line], columns).splitlines()[0] for columns in (JUDGED, OVERALL)]
    assert head[0].split(" | ")[2:] == [*order[:4], order[4] + " |"]
    assert head[1].endswith("| all | diversity | frechet |")
    assert set(JUDGED) | set(OVERALL) == set(WORDS) | {"all", "share of ground truth"}


def test_titles_are_said_once() -> None:
    titles = [title for title, _ in (ALL, *WORDS.values())]
    assert len(titles) == len(set(titles)) and all(rule.endswith(".") for _, rule in (ALL, *WORDS.values()))
