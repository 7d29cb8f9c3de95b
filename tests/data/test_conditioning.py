"""Control images: the scale, the background under what is cut out, the padding, the region, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand.data.conditioning import CONDITION_BACKGROUND, open_region, read_conditioning
from worlds import raises


@pytest.fixture
def cutout(tmp_path: Path) -> Any:
    """A white patch of 12x20 in a frame of 32x48, the rest transparent."""
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[8:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    return tmp_path / "cut.png"


def test_what_is_cut_out_stands_on_the_conditions_background(cutout: Any) -> None:
    pixels = read_conditioning(cutout, (32, 48))
    background = torch.tensor(CONDITION_BACKGROUND).view(3, 1, 1) / 255
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 32, 48)
    assert torch.equal(pixels[:, 8:20, 10:30], torch.ones(3, 12, 20))
    pixels[:, 8:20, 10:30] = background
    assert torch.equal(pixels, background.expand(3, 32, 48))


def test_it_is_padded_and_never_cropped(cutout: Any) -> None:
    pixels = read_conditioning(cutout, (48, 48))
    assert torch.equal(pixels[:, 8:40], read_conditioning(cutout, (32, 48)))
    rest = torch.cat([pixels[:, :8], pixels[:, 40:]], 1)
    assert torch.equal(rest, (torch.tensor(CONDITION_BACKGROUND).view(3, 1, 1) / 255).expand_as(rest))


def test_edges_keep_their_own_background_and_every_value(tmp_path: Path) -> None:
    values = np.zeros((16, 32, 3), np.uint8)
    values[4:8, 5:13] = np.arange(96).reshape(4, 8, 3)
    Image.fromarray(values).save(tmp_path / "edges.png")
    pixels = read_conditioning(tmp_path / "edges.png", (32, 32))
    assert torch.equal((pixels * 255).round().to(torch.uint8)[:, 8:24], torch.from_numpy(values).permute(2, 0, 1))
    assert pixels[:, :8].max() == 0 and pixels.min() == 0  # black to the frame's edge: no green
    assert open_region(tmp_path / "edges.png", (32, 32)) is None


def test_flip_swaps_left_and_right(cutout: Any) -> None:
    assert torch.equal(read_conditioning(cutout, (32, 48), flip=True)[:, 8:20, 18:38], torch.ones(3, 12, 20))


def test_the_region_is_what_is_cut_out(cutout: Any) -> None:
    region = open_region(cutout, (48, 48))
    assert region.dtype == torch.bool and region.sum() == 12 * 20 and region[16:28, 10:30].all()


def test_half_transparent_pixels_are_outside_the_region(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:8, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    assert torch.equal(open_region(tmp_path / "half.png", (16, 16)), torch.arange(16).view(16, 1).expand(16, 16) < 8)


@pytest.mark.parametrize("function", [read_conditioning, open_region])
def test_what_cannot_be_opened_is_refused_with_its_reason(function: Any, tmp_path: Path) -> None:
    with raises("image", tmp_path / "none.png", "missing"):
        function(tmp_path / "none.png", (32, 32))
    (tmp_path / "text.png").write_text("no image")
    with raises("image", tmp_path / "text.png", "header"):
        function(tmp_path / "text.png", (32, 32))
