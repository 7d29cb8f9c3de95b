"""The product's light: closed forms of its numbers, relit copies, and that little of it changes with the size."""

import numpy as np
import pytest
import torch
from violations import side_light

from onbrand.measure import light as light_module
from onbrand.measure.cut import cut
from onbrand.measure.lab import lab_of, to_lab, to_linear
from onbrand.measure.light import FEWEST, brightness, fit_light, small
from onbrand.measure.relight import FALL, frame, relight
from onbrand.measure.shading import count_colours, shading


def two_tone(size: int = 64) -> torch.Tensor:
    """Left half of a product dark, right half light, on white."""
    picture = torch.ones(1, 3, size, size)
    picture[:, :, size // 4 : -size // 4, size // 4 : size // 2] = 60 / 255
    picture[:, :, size // 4 : -size // 4, size // 2 : -size // 4] = 160 / 255
    return picture


def test_brightness_of_two_tones_in_closed_form():
    dark, light = (lab_of((v, v, v))[0].item() for v in (60, 160))
    found = brightness(cut(two_tone()))
    assert found["light_mean"].item() == pytest.approx((dark + light) / 2, abs=0.05)
    assert found["light_spread"].item() == pytest.approx((light - dark) / 2, abs=0.05)
    assert found["light_low"].item() == pytest.approx((light - dark) / 2, abs=0.05)  # blocks of 8 x 8 fit the halves


def test_low_pass_does_not_see_fine_texture():
    picture = torch.ones(1, 3, 64, 64)
    picture[:, :, 16:48, 16:48] = 60 / 255
    picture[:, :, 16:48, 16:48:2] = 160 / 255
    found = brightness(cut(picture))
    assert found["light_spread"].item() > 15 and found["light_low"].item() < 0.5


def test_enclosed_ground_is_not_the_products_light():
    picture = two_tone()
    before = brightness(cut(picture))["light_mean"].item()
    picture[:, :, 30:34, 24:40] = 1.0
    assert brightness(cut(picture))["light_mean"].item() == pytest.approx(before, abs=0.5)


def test_relit_copies_differ_in_the_product_only_and_by_no_more_than_they_should(held_out):
    pictures = held_out[:200]
    parts = cut(pictures)
    relit = relight(pictures, parts.product, torch.Generator().manual_seed(0))
    changed = (relit != pictures).any(1)
    assert not (changed & ~parts.product).any() and changed.any(2).any(1).float().mean() > 0.98
    ratio = (to_linear(relit) / to_linear(pictures).clamp(min=1e-3)).permute(0, 2, 3, 1)[parts.product]
    assert ratio.min() > 0.1 and relit.min() >= 0 and relit.max() <= 1
    again = relight(pictures, parts.product, torch.Generator().manual_seed(0))
    assert torch.equal(relit, again)


def test_a_fall_of_light_is_as_deep_as_said():
    grey = torch.full((400, 3, 16, 16), 0.5)
    relit = to_linear(relight(grey, torch.ones(400, 16, 16, dtype=torch.bool), torch.Generator().manual_seed(1)))
    luminance = relit[:, 0] / to_linear(grey)[:, 0]
    falls = 1 - luminance.flatten(1).amin(1) / luminance.flatten(1).amax(1)
    falling = falls > 0.01  # others got a gamma or a lamp, even all over
    assert 0.4 < falling.float().mean() < 0.6
    assert FALL[0] - 0.01 < falls[falling].min() < 0.35 and 0.55 < falls[falling].max() < FALL[1] + 0.01
    assert (luminance.flatten(1).amax(1)[falling] - 1).abs().max() < 1e-3


def test_frame_runs_over_the_products_box():
    product = torch.zeros(1, 10, 20, dtype=torch.bool)
    product[0, 2:6, 5:15] = True
    across, down = frame(product)
    assert across[0, 0, 5].item() == pytest.approx(-0.45) and across[0, 0, 14].item() == pytest.approx(0.45)
    assert down[0, 2, 0].item() == pytest.approx(-0.375) and down[0, 5, 0].item() == pytest.approx(0.375)


def test_the_robust_plane_follows_the_light_and_not_a_print():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    lab = torch.zeros(2, 3, 64, 64)
    lab[:, 0] = 50 + 20 * columns - 8 * rows
    lab[1, 0, 20:30, 6:26] = 95.0  # a white print
    product = torch.ones(2, 64, 64, dtype=torch.bool)
    features = shading(lab, product, count_colours(lab, product))
    slope = features[:, 14:16]  # after the middle, 7 quantiles, 3 of a*, 3 of b*
    assert torch.allclose(slope[0], torch.tensor([20.0, -8.0]), atol=0.5)
    assert torch.allclose(slope[1], torch.tensor([20.0, -8.0]), atol=1.5)
    expected = np.quantile(lab[0, 0, ::2, ::2].numpy(), [0.02, 0.5, 0.98], method="nearest")
    assert np.allclose(features[0, 0], expected[1], atol=0.2)
    assert np.allclose(features[0, [1, 7]] + features[0, 0], expected[[0, 2]], atol=0.5)


def test_colours_count_pictures_alike_and_spread_to_neighbours_only(held_out):
    parts = cut(held_out[:50])
    counted = count_colours(parts.lab, parts.product)
    one = count_colours(parts.lab[:1], parts.product[:1])
    assert counted.sum().item() == pytest.approx(27, rel=0.02)  # each colour stands in 27 cells
    assert (counted >= one / 50 - 1e-9).all()


def test_no_light_is_learned_from_a_handful():
    assert fit_light(two_tone().repeat(FEWEST - 1, 1, 1, 1)) is None


def test_light_is_read_at_one_size(held_out):
    large = torch.nn.functional.interpolate(held_out[:4], scale_factor=4, mode="nearest")
    pictures, lab, product = small(cut(large))
    assert torch.allclose(pictures, held_out[:4], atol=1e-6) and torch.allclose(lab, to_lab(held_out[:4]), atol=1e-3)
    assert (product == small(cut(held_out[:4]))[2]).float().mean() > 0.99


def test_light_is_learned_the_same_from_the_same_and_tells_a_side_light(held_out, monkeypatch):
    monkeypatch.setattr(light_module, "STEPS", 120)
    light, unseen = fit_light(held_out[:200], seed=1)
    again, _ = fit_light(held_out[:200], seed=1)
    assert torch.equal(light.hidden, again.hidden) and len(unseen) == 200
    real = light.score(cut(held_out[200:300]))["light_relit"]
    relit = light.score(cut(side_light(held_out[200:300], 0.6)))["light_relit"]
    assert (relit > unseen.median()).float().mean() > 0.9 and (relit - real).median() > 2
    assert light.score(cut(torch.ones(1, 3, 64, 64)))["light_relit"].isnan()
