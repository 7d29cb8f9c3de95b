"""The garment kept, in closed form: known shifts inside the region, anything at all on its rim and outside."""

from typing import Any

import pytest
import torch

from onbrand.evaluation.region import region_difference
from worlds import raises


@pytest.fixture
def garments() -> Any:
    """Conditions (2, 3, 32, 32) and a region of 12 x 8 in each, the second at the frame's corner."""
    conditions = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2 + 0.1
    regions = torch.zeros(2, 32, 32, dtype=torch.bool)
    regions[0, 8:20, 10:18] = True
    regions[1, :12, :8] = True
    return conditions, regions


def test_a_shift_of_known_size_is_found_whatever_is_outside(garments: Any) -> None:
    conditions, regions = garments
    images = torch.ones_like(conditions)
    images[0, :, 9:19, 11:17] = conditions[0, :, 9:19, 11:17] + 10 / 255
    images[1, 0, :11, :7] = conditions[1, 0, :11, :7] + 30 / 255
    images[1, 1:, :11, :7] = conditions[1, 1:, :11, :7]
    # the rim is left out, but the frame is no rim; a third of the channels moved by 30
    assert region_difference(images, conditions, regions).tolist() == pytest.approx([10, 10], abs=1e-3)


def test_a_part_counts_by_its_pixels_and_signs_do_not_cancel(garments: Any) -> None:
    conditions, regions = garments
    conditions[1, :, 0, 0] = 0.5
    images = conditions.clone()
    images[0, :, 9:19, 11:14] += 20 / 255
    images[0, :, 9:19, 14:17] -= 20 / 255
    images[1, :, 0, 0] += torch.tensor([77, -77, 77]) / 255  # one of the 11 x 7 pixels inside
    expected = [(images - conditions)[0].abs().mul(255)[:, 9:19, 11:17].mean().item(), 1.0]
    assert expected[0] == pytest.approx(20, abs=1e-3)
    assert region_difference(images, conditions, regions).tolist() == pytest.approx(expected, abs=1e-3)


def test_the_same_garment_is_nothing_apart_and_a_region_of_its_rim_alone_is_nan(garments: Any) -> None:
    conditions, regions = garments
    assert region_difference(conditions, conditions, regions).tolist() == [0, 0]
    regions[1, 2:] = False  # two rows at the frame: one is left
    assert region_difference(conditions, conditions, regions).tolist() == [0, 0]
    regions[1] = False
    regions[1, 4:6] = True  # two rows inside: none is
    assert region_difference(conditions, conditions, regions)[1].isnan()


def test_other_shapes_and_ranges_are_said(garments: Any) -> None:
    conditions, regions = garments
    with raises("value", "(2, 3, 32, 32)", "(2, 3, 32, 31)"):
        region_difference(conditions, conditions[..., 1:], regions)
    with raises("value", "conditions", "[0, 1]", f"{255 * conditions.max():.3g}"):
        region_difference(conditions, conditions * 255, regions)
