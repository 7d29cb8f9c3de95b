"""The block of a modular pipeline among diffusers' own: its first state is Eq. 8's, its images the classic ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

import onbrand
from onbrand.core.offset import x_init
from onbrand.sampling.modular import StartStep
from onbrand.sampling.noise import noise_for
from worlds import raises, tiny_pipeline, tiny_prior

SEEDS = [3, 4]
PROMPTS = ["product photo, red", "product photo, a boot"]
START = {"gain": "constant", "start": "mean", "k": 0, "start_timestep": 951}


@pytest.fixture(scope="module")
def classic() -> Any:
    return tiny_pipeline(family="sdxl")


def modular(classic: Any, **settings: Any) -> Any:
    """diffusers' pipeline with the block, of the classic one's parts."""
    blocks = StableDiffusionXLAutoBlocks()
    before = blocks.sub_blocks["denoise"].sub_blocks["before_denoise"].sub_blocks["text2img"].sub_blocks
    before.insert("start", StartStep(tiny_prior(classic), **settings), list(before).index("prepare_latents"))
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in classic.components.items() if part is not None})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, **more: Any) -> Any:
    return pipe(**{"prompt": PROMPTS, "seeds": SEEDS, "num_inference_steps": 2, "output_type": "pt"} | more)


def test_the_first_state_is_eq_8(classic: Any) -> None:
    pipe = modular(classic, trained_start=START | {"start_timestep": 501})
    seen: list[torch.Tensor] = []
    hook = classic.unet.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:2].clone()))
    call(pipe)
    hook.remove()
    prior = tiny_prior(classic)
    noise = noise_for(SEEDS, prior.shape, True)
    expected = x_init(prior.mean(["product photo"] * 2), noise, classic.scheduler.alphas_cumprod[501])
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"start": "mean", "look_ahead": 0}, {}),
        ({"start": "text", "look_ahead": 0}, {"negative_prompt": "a shoe"}),
        ({}, {}),  # plain weights look ahead
        ({}, {"negative_prompt": ["a shoe", "two"]}),
        ({"start": "pca", "k": 2}, {}),
    ],
)
def test_images_are_those_of_the_classic_pipeline(classic: Any, settings: Any, more: Any) -> None:
    images = call(modular(classic, **settings), output="images", **more)
    about = {"num_inference_steps": 2, "guidance_scale": 7.5, **more}
    latents = onbrand.start(classic, tiny_prior(classic), PROMPTS, seeds=SEEDS, **settings, **about)
    expected = classic(PROMPTS, latents=latents, output_type="pt", **about).images
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_several_images_of_a_prompt_have_a_seed_each(classic: Any) -> None:
    pipe = modular(classic, look_ahead=0)
    assert len(call(pipe, prompt=PROMPTS[0], num_images_per_prompt=2, output="images")) == 2
    with raises("start", "one of prompts", "2 seeds"):
        call(pipe, num_images_per_prompt=2)
