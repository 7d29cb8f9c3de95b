"""The autoencoder's training: what is grown stays what it was, what is white stays white."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL


@pytest.fixture(scope="module")
def vae(tiny_tool: Any) -> Any:
    return tiny_tool("vae")


def test_new_layers_change_nothing_at_first(vae: Any, tmp_path: Path) -> None:
    old = AutoencoderKL.from_config(dict(vae.build().config) | {"layers_per_block": 1})
    old.register_to_config(scaling_factor=0.5)
    old.save_pretrained(tmp_path)
    new, x = vae.grown(tmp_path), torch.rand(1, 3, 32, 32) * 2 - 1
    assert sum(p.numel() for p in new.parameters()) > sum(p.numel() for p in old.parameters())
    assert new.config.scaling_factor == 0.5
    with torch.no_grad():
        torch.testing.assert_close(new(x).sample, old(x).sample)


def test_white_may_be_whiter_but_not_less(vae: Any) -> None:
    x = torch.ones(1, 3, 16, 16)
    x[..., 8:, :] = -0.2
    right = torch.where(x == 1, vae.OVER, x)
    short, beyond = right.clone(), right.clone()
    short[..., :4, :], beyond[..., :4, :] = 0.99, 1.3
    assert vae.error(x, right) < vae.error(x, beyond) < vae.error(x, short)
    darker = short.clone()
    darker[..., :4, :] = 0.9
    assert vae.error(x, darker) - vae.error(x, short) > 10 * 0.09 / 4, "a quarter of it"
    beyond[..., :4, :], right[..., :4, :] = 2.0, 1.9  # no more than what their edges differ by
    assert vae.error(x, beyond) - vae.error(x, right) == pytest.approx(0.5 * 0.1 * 3.6 / 15, abs=0.01)


def test_the_fuller_part_is_taken(vae: Any) -> None:
    images = torch.full((1, 128, 128, 3), 255, dtype=torch.uint8)
    images[0, 96:, 96:] = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8)
    parts = vae.crops(images, 400, torch.Generator().manual_seed(0))
    share = (parts.amin((1, 2, 3)) < 1).float().mean().item()
    assert share == pytest.approx(7 / 16, abs=0.06), "one corner in four shows some of it"


def test_the_wide_one_has_eight_numbers_for_48(vae: Any) -> None:
    with torch.device("meta"):
        wide = vae.build("wide")
        assert wide.encode(torch.rand(1, 3, 32, 32)).latent_dist.mean.shape == (1, 8, 8, 8)
    assert 3e6 < sum(p.numel() for p in wide.parameters()) < 4e6
