"""`onbrand export --format webui`: images for img2img, and the script that starts Forge's txt2img at Eq. 8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from onbrand import api
from onbrand.core.offset import x_init
from onbrand.data.images import to_image
from onbrand.models.pipeline import decode
from worlds import raises, tiny_pipeline, tiny_prior

HERE = Path(__file__).parent


def test_the_script_and_the_images_start_from_the_class_means(tmp_path: Path) -> None:
    pipe = tiny_pipeline(family="sd")
    prior = tiny_prior(pipe, ("product photo", "person: a/b"))
    pipe.save_pretrained(tmp_path / "model")
    prior.save(tmp_path / "acme" / "prior.safetensors")
    out = api.export(tmp_path / "acme", format="webui", output_dir=tmp_path / "out", model=tmp_path / "model")
    assert {path.name for path in (out / "images").iterdir()} == {"product photo.png", "person_ a_b.png"}
    drawn = Image.open(out / "images" / "product photo.png")
    assert drawn.tobytes() == to_image(decode(pipe, prior.mean("product photo"))[0]).tobytes()
    run = subprocess.run(
        [sys.executable, HERE / "in_forge.py", out, tmp_path / "states"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "width 64 and height 64" in run.stdout
    states = load_file(tmp_path / "states")
    noise = states.pop("noise")
    noise = noise - noise.mean((2, 3), keepdim=True)
    x_start = prior.mean("product photo").expand_as(noise)
    expected = x_init(x_start, noise, float(pipe.scheduler.alphas_cumprod[951]))
    assert set(states) == {"k", "k, sgm", "ddim"}
    for state in states.values():
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_another_models_images_are_none(tmp_path: Path) -> None:
    pipe, other = tiny_pipeline(family="sd"), tiny_pipeline(family="sdxl")
    tiny_prior(pipe).save(tmp_path / "acme" / "prior.safetensors")
    other.save_pretrained(tmp_path / "model")
    with raises("prior", "scaling_factor"):
        api.export(tmp_path / "acme", format="webui", output_dir=tmp_path / "out", model=tmp_path / "model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["p.modified_noise", "process_before_every_sampling", "is_hr_pass"])
def test_forge_still_has_what_the_script_names(name: str) -> None:
    folder = Path(os.environ.get("ONBRAND_FORGE", "nowhere"))
    if not (folder / "modules" / "processing.py").is_file():
        pytest.skip("ONBRAND_FORGE names no folder of Forge: its own code is not asked")
    text = (folder / "modules" / "processing.py").read_text(encoding="utf-8")
    assert name.removeprefix("p.") in text
