"""Lab against published values, and sRGB against its own inverse."""

from typing import Any

import pytest
import torch

from onbrand.evaluation.colour import distance, lab_of, to_lab, to_linear, to_srgb
from worlds import raises

PUBLISHED = {  # Lindbloom's calculator, sRGB, D65
    (255, 255, 255): (100.0, 0.0, 0.0),
    (255, 0, 0): (53.2408, 80.0925, 67.2032),
    (0, 255, 0): (87.7347, -86.1827, 83.1793),
    (0, 0, 255): (32.2970, 79.1875, -107.8602),
    (128, 128, 128): (53.5850, 0.0, 0.0),
    (3, 3, 3): (0.8226, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("rgb", PUBLISHED)
def test_lab_is_as_published(rgb: Any) -> None:
    assert torch.allclose(lab_of(rgb), torch.tensor(PUBLISHED[rgb]), atol=0.02)


def test_srgb_and_linear_light_are_inverse() -> None:
    values = torch.linspace(0, 1, 1001)
    assert torch.allclose(to_srgb(to_linear(values)), values, atol=1e-5)
    assert to_linear(torch.tensor(0.5)) == pytest.approx(0.21404, abs=1e-4)


def test_a_distance_is_one_of_all_three_axes_and_of_each_image() -> None:
    lab = torch.tensor([[50.0, 3.0, 4.0], [50.0, 0.0, 0.0]])[:, :, None, None].expand(2, 3, 2, 2)
    assert torch.equal(distance(lab, torch.tensor([50.0, 0.0, 0.0]))[:, 0, 0], torch.tensor([5.0, 0.0]))
    assert distance(lab, torch.tensor([[50.0, 3.0, 4.0], [62.0, 0.0, 5.0]]))[:, 0, 0].tolist() == [0, 13]


@pytest.mark.parametrize(
    "pixels, values",
    [
        (torch.zeros(3, 8, 8), ("(B, 3, H, W)", "(3, 8, 8)")),
        (torch.zeros(1, 4, 8, 8), ("(B, 3, H, W)", "(1, 4, 8, 8)")),
        (torch.full((1, 3, 8, 8), 1.1), ("[0, 1]", "[1.1, 1.1]")),
        (torch.full((1, 3, 8, 8), torch.nan), ("[0, 1]", "[nan, nan]")),
    ],
)
def test_other_tensors_are_refused(pixels: Any, values: Any) -> None:
    with raises("value", *values):
        to_lab(pixels)
