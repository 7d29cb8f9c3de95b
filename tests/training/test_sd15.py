"""Stable Diffusion 1.5's own configuration, at a tenth of its width, through training and generation."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "sd15.py"
spec = importlib.util.spec_from_file_location("sd15", FILE)
sd15 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sd15)


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
