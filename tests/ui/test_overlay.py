"""The brand's ranges drawn over an image of which everything is known."""

import math

import pytest
from PIL import Image, ImageDraw

from onbrand.evaluation.reference import Reference
from onbrand.ui.overlay import ALLOWED, BOX, SIDE, drawn

BOUNDS = {"margin": (0.1, math.inf), "centre_x": (-0.05, 0.05), "centre_y": (-0.05, 0.05)}
REFERENCE = Reference((255, 255, 255), {"shoe": BOUNDS, "hat": {}}, {}, {}, {}, (10, 0))


def product(left: int, top: int, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    image = Image.new("RGB", (64, 64), background)
    ImageDraw.Draw(image).rectangle((left, top, left + 23, top + 31), (150, 30, 40))
    return image


@pytest.mark.parametrize("left, top", [(20, 16), (4, 30)])
def test_draws_the_products_box_and_centre(left: int, top: int) -> None:
    canvas, scale = drawn(product(left, top), REFERENCE, "shoe"), SIDE / 64
    assert canvas.size == (SIDE, SIDE)
    for x, y in ((left * scale, (top + 4) * scale), ((left + 24) * scale - 1, (top + 4) * scale),
                 ((left + 12) * scale, (top + 16) * scale)):  # fmt: skip
        assert canvas.getpixel((round(x), round(y))) == BOX


def test_draws_what_is_allowed() -> None:
    canvas = drawn(product(20, 16), REFERENCE, "shoe")
    assert canvas.getpixel((round(0.1 * SIDE), round(0.1 * SIDE))) == ALLOWED
    assert canvas.getpixel((round(0.45 * SIDE), round(0.45 * SIDE))) == ALLOWED
    plain = drawn(product(20, 16), REFERENCE, "hat")
    assert plain.getpixel((round(0.1 * SIDE), round(0.1 * SIDE))) != ALLOWED


@pytest.mark.parametrize("background, good", [((255, 255, 255), True), ((200, 210, 230), False)])
def test_tints_the_background_by_its_colour(background: tuple[int, int, int], good: bool) -> None:
    red, green, _ = drawn(product(20, 16, background), REFERENCE, "hat").getpixel((30, 30))
    assert (green > red) == good


def test_an_image_without_a_product_and_one_that_is_not_square() -> None:
    assert drawn(Image.new("RGB", (64, 32), (255, 255, 255)), REFERENCE, "shoe").size == (SIDE, SIDE // 2)
