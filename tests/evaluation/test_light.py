"""The light: closed forms of its numbers on drawn images."""

import pytest
import torch
from torch.nn.functional import interpolate
from violations import side_light, under

from onbrand.evaluation.colour import lab_of, to_lab
from onbrand.evaluation.properties import Brand, light_of
from onbrand.evaluation.segmentation import cut


def two_tone(size: int = 64) -> torch.Tensor:
    """Left half of a product dark, right half light, on white."""
    image = torch.ones(1, 3, size, size)
    image[:, :, size // 4 : -size // 4, size // 4 : size // 2] = 60 / 255
    image[:, :, size // 4 : -size // 4, size // 2 : -size // 4] = 160 / 255
    return image


def test_brightness_of_two_tones_in_closed_form() -> None:
    dark, light = (lab_of((v, v, v))[0].item() for v in (60, 160))
    numbers = light_of(cut(two_tone()), Brand())
    assert numbers["light_mean"].item() == pytest.approx((dark + light) / 2, abs=0.05)
    assert numbers["light_spread"].item() == pytest.approx((light - dark) / 2, abs=0.05)
    assert numbers["light_low"].item() == pytest.approx((light - dark) / 2, abs=0.05)  # blocks of 8 x 8 fit the halves


def test_low_pass_does_not_see_fine_texture() -> None:
    image = torch.ones(1, 3, 64, 64)
    image[:, :, 16:48, 16:48] = 60 / 255
    image[:, :, 16:48, 16:48:2] = 160 / 255
    numbers = light_of(cut(image), Brand())
    assert numbers["light_spread"].item() > 15 and numbers["light_low"].item() < 0.5


def test_enclosed_background_is_not_the_products_light() -> None:
    image = two_tone()
    brightness = light_of(cut(image), Brand())["light_mean"].item()
    image[:, :, 30:34, 24:40] = 1.0
    assert light_of(cut(image), Brand())["light_mean"].item() == pytest.approx(brightness, abs=0.5)


def test_an_even_set_has_four_sides_of_one_lightness_and_a_side_light_one_dark_one() -> None:
    assert light_of(cut(two_tone()), Brand())["light_sides"].item() == pytest.approx(100, abs=0.01)
    dark = to_lab(under(torch.ones(1, 3, 1, 1), torch.tensor(0.6)))[0, 0].item()
    assert light_of(cut(side_light(two_tone(), 0.4)), Brand())["light_sides"].item() == pytest.approx(dark, abs=0.05)


def test_light_does_not_change_with_the_size_of_the_image() -> None:
    small, large = light_of(cut(two_tone()), Brand()), light_of(cut(interpolate(two_tone(), scale_factor=4)), Brand())
    assert all(small[name].item() == pytest.approx(large[name].item(), abs=0.1) for name in small)


def test_an_image_without_product_has_no_light_but_its_sides() -> None:
    numbers = light_of(cut(torch.ones(1, 3, 32, 32)), Brand())
    assert all(numbers[name].isnan().item() for name in ("light_mean", "light_spread", "light_low"))
    assert numbers["light_sides"].item() == pytest.approx(100, abs=0.01)
