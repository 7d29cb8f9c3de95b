"""The SDXL-shaped stand-in: its network, what of onbrand-tiny is in it, what it is told of an image's size."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from onbrand.models.pipeline import load
from onbrand.models.scheduler import read_scheduler, with_options

ROWS = 6
"""Images of the corpus."""


@pytest.fixture(scope="module")
def sdxl(tiny_tool: Any) -> Any:
    return tiny_tool("unet_sdxl")


@pytest.fixture
def model(sdxl: Any) -> Any:
    """The pipeline before it is taught, and how many of its UNet's numbers are onbrand-tiny's."""
    return sdxl.pipeline()


@pytest.fixture(scope="module")
def corpus(tiny_tool: Any) -> Any:
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(ROWS, 4, 8, 8, generator=rng).half()
    sizes = torch.tensor([[64.0 + i, 128, i, 0, 128, 128] for i in range(ROWS)])
    return tiny_tool("unet").Corpus(mean, mean.abs() / 10, sizes, ["a red dress", "blue shorts"] * (ROWS // 2))


def test_half_begins_as_the_shipped_model_and_all_of_it_fits(model: Any) -> None:
    pipe, count = model
    own, tiny = pipe.unet.state_dict(), load("tiny").unet.state_dict()
    total = sum(weight.numel() for weight in own.values())
    assert 0.4 < count / total < 0.6
    for name, other in {
        "up_blocks.2.resnets.1.conv1.weight": "up_blocks.3.resnets.1.conv1.weight",  # of one resolution
        "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight": "",
        "down_blocks.2.attentions.0.proj_in.weight": "",  # a convolution of 1x1 there
    }.items():
        assert torch.equal(own[name].flatten(), tiny[other or name].flatten()), name
    parts = (pipe.vae, pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < 11.7e6, "12 MB with its tokenizers"


def test_it_leaks_as_sdxl_base_and_its_schedule_is_known_to_other_samplers(model: Any) -> None:
    scheduler = model[0].scheduler
    first = read_scheduler(scheduler, 20)
    assert first.timesteps[0] == 951 and first.prediction_type == "epsilon"
    in_mean = 0.56  # share of a class mean's energy that offset noise of .0357 covers
    as_sdxl = 65536 * 0.00815 * (1 - in_mean + in_mean / (1 + 0.0357**2 * 128**2))
    assert 4096 * first.abar == pytest.approx(as_sdxl, rel=0.05)
    ddim = with_options(scheduler, "DDIMScheduler")
    assert ddim.config["clip_sample"] is False and read_scheduler(ddim, 20).timesteps[0] == 951


def test_an_image_is_what_its_sizes_say(sdxl: Any) -> None:
    y, x = np.mgrid[0:128, 0:128]
    ramp = np.stack([y, x, np.zeros_like(x)], 2).astype(np.uint8)  # every pixel says where it was
    whole = 0
    for seed in range(60):
        image, (height, width, top, left) = sdxl.photograph(ramp, np.random.default_rng(seed))
        assert image.shape == ramp.shape and image.dtype == np.uint8
        if (height, width, top, left) == (128, 128, 0, 0):
            whole += np.array_equal(image, ramp)
            continue
        assert min(height, width) >= 48 and max(height, width) <= 128
        zoom = 128 / min(height, width)
        assert 0 <= top <= height * zoom - 127 and 0 <= left <= width * zoom - 127
        seen = np.ptp(image[8:-8, 64, 0].astype(int)) / 111, np.ptp(image[64, 8:-8, 1].astype(int)) / 111
        assert seen[0] == pytest.approx(seen[1], abs=0.06), "nothing is stretched"
    assert 20 < whole < 40


def train(tiny_tool: Any, pipe: Any, corpus: Any, out: Path, steps: int, seconds: float = math.inf) -> Any:
    """The weights that a narrow UNet is taught."""
    out.mkdir(exist_ok=True)
    pipe.unet = tiny_tool("unet_sdxl").build(256, 128, (16, 16, 16))
    args = argparse.Namespace(out=out, steps=steps, batch=4, lr=1e-3, seconds=seconds, device="cpu")
    tiny_tool("unet").teach(pipe, corpus, args)
    return torch.cat([p.detach().flatten() for p in pipe.unet.parameters()])


@pytest.mark.slow
def test_teaching_goes_on_as_if_it_had_not_stopped(
    tiny_tool: Any, model: Any, corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the network is told each image's own sizes; a dropped caption is zeros."""
    calls = []
    forward = UNet2DConditionModel.forward

    def watched(self: Any, x_t: Any, t: Any, hidden: Any, added_cond_kwargs: Any) -> Any:
        calls.append((hidden, added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]))
        return forward(self, x_t, t, hidden, added_cond_kwargs=added_cond_kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", watched)
        whole = train(tiny_tool, model[0], corpus, tmp_path / "whole", 6)
    hidden, pooled, sizes = (torch.cat(tensors) for tensors in zip(*calls, strict=True))
    assert all(any(torch.equal(row, known) for known in corpus.sizes) for row in sizes)
    dropped = (hidden == 0).all(1).all(1)
    assert 0 < dropped.sum() < 12 and torch.equal(dropped, (pooled == 0).all(1))
    out = tmp_path / "stopped"
    with pytest.raises(SystemExit):
        train(tiny_tool, model[0], corpus, out, 6, seconds=0)
    assert torch.equal(train(tiny_tool, model[0], corpus, out, 6), whole)


def test_the_world_is_encoded_from_where_it_stopped(
    tiny_tool: Any, sdxl: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, world = tiny_tool("unet"), tiny_tool("world")
    drawn = []

    def off_brand(cuts: Any, index: int, rng: Any) -> Any:
        if index == stop:
            raise KeyboardInterrupt
        drawn.append(index)
        return rng.integers(0, 256, (128, 128, 3)).astype(np.uint8), f"number {index}", {}

    monkeypatch.setattr(world, "sources", lambda *arguments: None)
    monkeypatch.setattr(world, "off_brand", off_brand)
    for module in (world, unet):
        monkeypatch.setattr(module, "PART", 2)
    args = argparse.Namespace(out=tmp_path, count=5, photos=None, workers=0, device="cpu")
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        unet.encoded(args, model[0].vae, sdxl.photograph)
    stop, args.out = -1, tmp_path / "whole"
    whole = unet.encoded(args, model[0].vae, sdxl.photograph)
    args.out, drawn[:] = tmp_path, []
    rest = unet.encoded(args, model[0].vae, sdxl.photograph)
    assert drawn == [2, 3, 4] and rest.captions == whole.captions == [f"number {i}" for i in range(5)]
    for name in ("mean", "std", "sizes"):
        assert torch.equal(getattr(rest, name), getattr(whole, name)), name
    assert whole.mean.shape == (5, 4, 32, 32) and (whole.sizes[:, 4:] == 128).all()
