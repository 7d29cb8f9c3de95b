"""Control pictures: the scale, the ground under what is cut out, the padding, the region, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from onbrand.data.conditioning import CONDITION_GROUND, open_conditioning, open_region
from onbrand.data.images import Refused


@pytest.fixture
def cut(tmp_path):
    """A white patch of 12x20 in a frame of 32x48, the rest transparent."""
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[8:20, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    return tmp_path / "cut.png"


def test_what_is_cut_out_stands_on_the_conditions_ground(cut):
    told = open_conditioning(cut, (32, 48))
    ground = torch.tensor(CONDITION_GROUND).view(3, 1, 1) / 255
    assert told.dtype == torch.float32 and told.shape == (3, 32, 48)
    assert torch.equal(told[:, 8:20, 10:30], torch.ones(3, 12, 20))
    told[:, 8:20, 10:30] = ground
    assert torch.equal(told, ground.expand(3, 32, 48))


def test_it_is_padded_and_never_cropped(cut):
    told = open_conditioning(cut, (48, 48))
    assert torch.equal(told[:, 8:40], open_conditioning(cut, (32, 48)))
    rest = torch.cat([told[:, :8], told[:, 40:]], 1)
    assert torch.equal(rest, (torch.tensor(CONDITION_GROUND).view(3, 1, 1) / 255).expand_as(rest))


def test_edges_keep_their_own_ground_and_every_value(tmp_path):
    values = np.zeros((16, 32, 3), np.uint8)
    values[4:8, 5:13] = np.arange(96).reshape(4, 8, 3)
    Image.fromarray(values).save(tmp_path / "edges.png")
    told = open_conditioning(tmp_path / "edges.png", (32, 32))
    assert torch.equal((told * 255).round().to(torch.uint8)[:, 8:24], torch.from_numpy(values).permute(2, 0, 1))
    assert told[:, :8].max() == 0 and told.min() == 0  # black to the frame's edge: no green
    assert open_region(tmp_path / "edges.png", (32, 32)) is None


def test_flip_swaps_left_and_right(cut):
    assert torch.equal(open_conditioning(cut, (32, 48), flip=True)[:, 8:20, 18:38], torch.ones(3, 12, 20))


def test_the_region_is_what_is_cut_out(cut):
    region = open_region(cut, (48, 48))
    assert region.dtype == torch.bool and region.sum() == 12 * 20 and region[16:28, 10:30].all()


def test_half_transparent_pixels_are_outside_the_region(tmp_path):
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:8, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    assert torch.equal(open_region(tmp_path / "half.png", (16, 16)), torch.arange(16).view(16, 1).expand(16, 16) < 8)


@pytest.mark.parametrize("opened", [open_conditioning, open_region])
def test_what_cannot_be_opened_is_refused_with_its_reason(opened, tmp_path):
    assert "missing" in opened(tmp_path / "none.png", (32, 32)).reason
    (tmp_path / "text.png").write_text("no picture")
    refused = opened(tmp_path / "text.png", (32, 32))
    assert isinstance(refused, Refused) and "not a picture" in refused.reason
