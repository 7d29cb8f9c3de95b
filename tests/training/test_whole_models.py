"""Stable Diffusion 1.5's and XL's own configurations, at a tenth of their width, through training and generation."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import sd15  # noqa: E402
import sdxl  # noqa: E402


@pytest.mark.parametrize("part", [name for name in sd15.PARTS if not name.endswith("bfloat16")])
@pytest.mark.filterwarnings("ignore:.* was fitted on 2 images")
def test_a_tenth_of_its_width(part: Any, tmp_path: Path) -> None:
    result = sd15.do(part, 0.1, 64, tmp_path)
    assert result["seconds"] > 0 and result["parameters"] > 5e6
    if "LoRA" in part:
        assert 0.05 < result["learned"] / result["parameters"] < 0.3
    elif "ControlNet" in part:
        assert 0.3 < result["learned"] / result["parameters"] < 0.6, "SD1.5's: 361 of 860 million"


def test_at_full_width_it_is_sd15s() -> None:
    """Counted without any weight: 859,520,964 parameters, as published."""
    with torch.device("meta"):
        unet = sd15.unet15()
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964


@pytest.mark.parametrize("part", list(sdxl.PARTS))
@pytest.mark.filterwarnings("ignore:.* was fitted on 2 images")
def test_a_tenth_of_sdxls_width(part: Any, tmp_path: Path) -> None:
    result = sdxl.do(part, 0.1, 64, tmp_path)
    assert result["seconds"] > 0 and result["parameters"] > 5e6


def test_at_full_width_it_is_sdxls() -> None:
    """Counted without any weight: 2,567,463,684 parameters, as published."""
    with torch.device("meta"):
        unet = sdxl.unet_xl()
    assert sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684
