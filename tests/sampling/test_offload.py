"""Parts that wait on the CPU until they are called: the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onbrand import api
from onbrand.models import pipeline
from onbrand.models.pipeline import device_of, encode
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.manifest import read_manifest
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample

CONFIG = SamplingSettings(start="text", num_inference_steps=4, guidance_scale=2.0, trace=1, batch_size=2)
REQUESTS = [Request(f"garment, item {seed}", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def test_images_are_the_same_with_parts_that_wait(model: Any, prior: Any) -> None:
    plain, away = pipeline.load(model), pipeline.load(model, offload=True)
    assert all(hasattr(part, "_hf_hook") for part in (away.unet, away.vae, away.text_encoder))
    assert away.vae.use_slicing and away.vae.use_tiling and device_of(away).type == "cpu"
    for one, other in zip(sample(plain, prior, REQUESTS, CONFIG), sample(away, prior, REQUESTS, CONFIG), strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-5)
        assert one.trace is None or torch.allclose(one.trace.x0_hat, other.trace.x0_hat, atol=1e-3)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(encode(plain, images), encode(away, images), rtol=1e-4, atol=1e-5)
    assert hasattr(away.vae, "_hf_hook"), "it waits again"


def test_generate_takes_it(model: Any, prior: Any, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.safetensors")
    arguments = {"model": model, "prior": tmp_path / "prior.safetensors", "prompt": "garment"} | vars(CONFIG)
    for out, offload in (("plain", False), ("away", True)):
        api.generate(output_dir=tmp_path / out, device="cpu", offload=offload, **arguments)
    assert read_manifest(tmp_path / "plain")[0]["device"] == read_manifest(tmp_path / "away")[0]["device"] == "cpu"
    assert api.generate(output_dir=tmp_path / "plain", device="cpu", offload=True, **arguments), "the same run goes on"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_parts_are_there_only_while_they_are_called(model: Any, prior: Any, tmp_path: Path) -> None:
    away, names = pipeline.load(model, "cuda", offload=True), []
    parts = {"unet": away.unet, "vae": away.vae, "text_encoder": away.text_encoder}
    for module in (away.unet, away.vae.decoder):
        module.register_forward_hook(lambda *_: names.append({n for n, p in parts.items() if p.device.type == "cuda"}))
    ours = list(sample(away, prior, REQUESTS, CONFIG))
    assert names[0] == {"unet"} and names[-1] == {"vae"}
    assert {part.device.type for part in parts.values()} == {"cpu"} and device_of(away).type == "cuda"
    for one, other in zip(ours, sample(pipeline.load(model, "cuda"), prior, REQUESTS, CONFIG), strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-3, atol=1e-3)
