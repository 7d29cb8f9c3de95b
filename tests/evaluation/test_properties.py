"""Ground and place of the product: closed form on drawn boxes; grounds that are off; products that touch a side."""

import pytest
import torch
from violations import on_gradient, on_ground, on_noise

from onbrand.evaluation.properties import measure


def box(left, right, top, bottom, size=64, colour=(0.7, 0.2, 0.1)):
    picture = torch.ones(1, 3, size, size)
    picture[:, :, top:bottom, left:right] = torch.tensor(colour).view(3, 1, 1)
    return picture


def test_place_of_a_box_in_closed_form():
    found = measure(box(10, 40, 4, 60))
    assert found["centre_x"].item() == pytest.approx((10 + 40) / 128 - 0.5)
    assert found["centre_y"].item() == pytest.approx(0.0)
    assert found["margin"].item() == pytest.approx(4 / 64)
    assert found["fill"].item() == pytest.approx(56 / 64) and found["market"].item() == 1
    assert found["border_product"].item() == 0


def test_place_is_in_shares_of_a_frame_of_any_shape():
    picture = torch.ones(1, 3, 32, 64)
    picture[:, :, 4:28, 0:32] = 0.0
    found = measure(picture)
    assert found["fill"].item() == pytest.approx(24 / 32) and found["centre_x"].item() == pytest.approx(-0.25)
    assert found["margin"].item() == 0 and found["border_product"].item() == pytest.approx(24 / (2 * (32 + 64) - 4))
    assert found["market"].item() == 0


def test_ground_of_a_box_in_closed_form():
    found = measure(box(16, 48, 16, 48))
    assert found["ground_share"].item() == pytest.approx(0.75)
    for name in ("ground_near", "ground_border", "ground_pure"):
        assert found[name].item() == 1
    assert found["ground_mean"].item() == pytest.approx(100, abs=0.01) and found["ground_spread"].item() < 0.05


def test_a_ground_off_by_two_levels_is_near_and_not_pure():
    found = measure(on_ground(box(16, 48, 16, 48), (253, 253, 253)))
    assert found["ground_near"].item() == 1 and found["ground_pure"].item() == 0
    assert found["ground_mean"].item() == pytest.approx(99.3, abs=0.1)


@pytest.mark.parametrize(
    ("off", "most"),
    [
        (lambda p: on_ground(p, (240, 240, 240)), 0.0),
        (lambda p: on_ground(p, (225, 238, 255)), 0.0),
        (lambda p: on_ground(p, (40, 60, 200)), 0.0),
        (lambda p: on_gradient(p, 200), 0.45),
        (lambda p: on_noise(p, 190), 0.35),
    ],
    ids=["240", "tinted", "blue", "gradient", "busy"],
)
def test_a_ground_that_is_off_is_not_near(off, most):
    found = measure(off(box(16, 48, 8, 56)))
    assert min(found["ground_near"].item(), found["ground_border"].item()) <= most


def test_the_brands_ground_need_not_be_white():
    grey = on_ground(box(16, 48, 16, 48), (240, 240, 240))
    assert measure(grey, (240, 240, 240))["ground_near"].item() == 1
    assert measure(box(16, 48, 16, 48), (240, 240, 240))["ground_near"].item() == 0


@pytest.mark.parametrize("touching", [(0, 40, 8, 56), (24, 64, 8, 56), (8, 56, 0, 40), (8, 56, 24, 64)])
def test_a_product_may_touch_one_side(touching):
    found = measure(box(*touching))
    assert found["ground_near"].item() == 1 and found["ground_border"].item() > 0.97
    assert found["margin"].item() == 0 and found["border_product"].item() > 0.15


def test_a_blank_picture_has_no_place_and_a_perfect_ground():
    found = measure(torch.ones(1, 3, 32, 32))
    assert found["ground_near"].item() == 1
    assert all(found[name].isnan().item() for name in ("centre_x", "margin", "fill", "market", "light_mean"))


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="got none"):
        measure(torch.zeros(0, 3, 16, 16))
