"""The pose: closed forms of the overlap on drawn boxes."""

from typing import Any

import pytest
import torch

from onbrand.evaluation.pose import overlap, silhouettes_of


def box(left: Any, right: Any, top: Any, bottom: Any, size: Any = 64) -> Any:
    image = torch.ones(1, 3, size, size)
    image[:, :, top:bottom, left:right] = 0.2
    return image


def test_overlap_of_boxes_in_closed_form() -> None:
    mean = silhouettes_of(box(16, 48, 16, 48))[0]
    assert mean.sum().item() == pytest.approx(16 * 16)  # cells of 2 x 2 pixels
    silhouettes = silhouettes_of(torch.cat([box(16, 48, 16, 48), box(24, 56, 16, 48), box(16, 32, 16, 48)]))
    assert overlap(silhouettes, mean).tolist() == pytest.approx([1, (24 * 32) / (40 * 32), 0.5])
    assert overlap(silhouettes_of(torch.ones(1, 3, 64, 64)), mean).isnan().all()


def test_a_silhouette_is_the_same_at_any_size() -> None:
    small, large = silhouettes_of(box(16, 48, 8, 56)), silhouettes_of(box(32, 96, 16, 112, 128))
    torch.testing.assert_close(small, large)
