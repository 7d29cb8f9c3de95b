"""Sampling against plain calls of diffusers' pipeline: one seed a picture, whatever the batch and the scheduler."""

from __future__ import annotations

import copy

import pytest
import torch

from onbrand.data.images import to_picture
from onbrand.models import pipeline
from onbrand.models.scheduler import with_options
from onbrand.options.generate import GenerateConfig
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import plan, run, sample
from onbrand.sampling.start import generator_for, start

REQUESTS = [Request(f"garment, item {seed}", seed, negative_prompt="blue" if seed % 2 else "") for seed in range(5)]
FAST = {"steps": 4, "guidance": 3.0, "look_ahead": 0}
LOOKING = FAST | {"look_ahead": None}
"""With a look ahead, as where nothing is asked for."""


@pytest.mark.parametrize("options", [{}, {"scheduler": "DPMSolverMultistepScheduler", "spacing": "trailing"},
                                     {"scheduler": "EulerDiscreteScheduler", "karras": True}])  # fmt: skip
def test_a_picture_is_what_the_pipeline_makes_of_the_start(pipe, prior, options):
    own = pipe.scheduler
    made = list(sample(pipe, prior, REQUESTS[:2], GenerateConfig(**LOOKING, **options)))
    assert pipe.scheduler is own, "the pipeline has its own scheduler back"
    by_hand = copy.copy(pipe)
    by_hand.scheduler = with_options(own, options.get("scheduler"), options.get("spacing"), options.get("karras"))
    prompts = [request.prompt for request in REQUESTS[:2]]
    call = {"negative_prompt": ["", "blue"], "num_inference_steps": 4, "guidance_scale": 3.0}
    theirs = by_hand(prompts, latents=start(by_hand, prior, prompts, seeds=[0, 1], **call), **call)
    assert [picture.image.tobytes() for picture in made] == [image.tobytes() for image in theirs.images]
    assert [(picture.index, picture.class_name, picture.batch) for picture in made] == [
        (0, "garment", (0, 2)),
        (1, "garment", (0, 2)),
    ]
    assert made[0].image.tobytes() == to_picture(pipeline.decode(pipe, made[0].latents[None])[0]).tobytes()


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"scheduler": "EulerAncestralDiscreteScheduler"},
                                     {"scheduler": "DDPMScheduler"}, {"start": "pca"},
                                     {"start": "text", "residual": True}, {"look_ahead": 2}], ids=str)  # fmt: skip
def test_a_seed_makes_the_same_picture_in_any_batch(pipe, prior, options):
    three, one, turned = (
        {picture.request.seed: picture.latents for picture in sample(pipe, prior, requests, config)}
        for requests, config in (
            (REQUESTS, GenerateConfig(**FAST | options, batch=3)),
            (REQUESTS, GenerateConfig(**FAST | options, batch=1)),
            (REQUESTS[::-1], GenerateConfig(**FAST | options, batch=3)),
        )
    )
    for seed in range(5):
        scale = float(three[seed].abs().max())
        torch.testing.assert_close(one[seed], three[seed], rtol=0, atol=1e-4 * scale)
        torch.testing.assert_close(turned[seed], three[seed], rtol=0, atol=1e-4 * scale)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


def test_random_steps_are_random_but_not_the_starts_noise_again(pipe, prior):
    still, moved = ([*sample(pipe, prior, REQUESTS[:1], GenerateConfig(**FAST, eta=eta))] for eta in (0.0, 1.0))
    assert not torch.allclose(still[0].latents, moved[0].latents, atol=1e-2)
    begun = start(pipe, prior, REQUESTS[0].prompt, seeds=0, num_inference_steps=4, look_ahead=0)
    by_hand = pipe(REQUESTS[0].prompt, latents=begun,
                   generator=[generator_for(0, "steps")], eta=1.0, output_type="latent",
                   num_inference_steps=4, guidance_scale=3.0).images  # fmt: skip
    assert torch.equal(by_hand[0], moved[0].latents)


def test_no_guidance_takes_one_call_of_the_network(pipe, prior):
    seen = []
    handle = pipe.unet.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        list(sample(pipe, prior, REQUESTS[:3], GenerateConfig(steps=2, guidance=1.0, look_ahead=0)))
        list(sample(pipe, prior, REQUESTS[:3], GenerateConfig(steps=2, guidance=2.0, look_ahead=1)))
    finally:
        handle.remove()
    assert seen == [3, 3, 6, 6, 6], "two steps without guidance; a look and two steps with it"


def test_what_is_done_is_not_made_again_and_the_rest_is_the_same(pipe, prior):
    config = GenerateConfig(**FAST, batch=2, scheduler="EulerDiscreteScheduler")
    whole = {picture.index: picture for picture in sample(pipe, prior, REQUESTS, config)}
    calls, work = [], plan(pipe, prior, REQUESTS, config)
    handle = pipe.unet.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    try:
        rest = list(run(work, done={0, 1, 3}))
    finally:
        handle.remove()
    assert work.scheduler.step_index is None, "a plan may be run again"
    assert [picture.index for picture in rest] == [2, 4] and calls == [4] * 4 + [2] * 4
    assert all(picture.image.tobytes() == whole[picture.index].image.tobytes() for picture in rest)


def test_all_is_checked_at_the_call(pipe, prior):
    """Before the first picture is asked for, and for every request."""
    two = copy.copy(REQUESTS)
    with pytest.raises(ValueError, match="'a shoe'.*'garment', 'garment on a person'"):
        sample(pipe, prior, [*two, Request("a shoe", 1)])
    with pytest.raises(ValueError, match="unknown class 'shoe'"):
        sample(pipe, prior, [*two, Request("garment", 1, "shoe")])
    with pytest.raises(ValueError, match="at least one request"):
        sample(pipe, prior, [])
    with pytest.raises(ValueError, match="no scheduler class 'Nonsense'"):
        sample(pipe, prior, two, GenerateConfig(scheduler="Nonsense"))
    with pytest.raises(ValueError, match="eta is DDIM's; EulerDiscreteScheduler has none"):
        sample(pipe, prior, two, GenerateConfig(scheduler="EulerDiscreteScheduler", eta=0.5))
    with pytest.raises(ValueError, match="OB003"):
        window = {"gain": "window", "kind": "mean", "first": 950}
        sample(pipe, prior, two, GenerateConfig(steps=10), offset=window)
    with pytest.raises(ValueError, match="an image start needs a picture a request; 5 lack one, as None"):
        sample(pipe, prior, two, GenerateConfig(start="image"))
    with pytest.warns(UserWarning, match="1 of 6 prompts are longer than the tokenizer's 32 tokens"):
        sample(pipe, prior, [*two, Request("garment " + "x" * 40, 1)])


def test_image_start_from_files(pipe, prior, tmp_path):
    """The picture's own latent (the paper's control), from a file that is padded to the prior's size."""
    colours = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, colour in zip(files, colours, strict=True):
        to_picture(colour).save(file)
    requests = [Request("garment", seed, image=str(file)) for seed, file in enumerate(files)]
    config = GenerateConfig(steps=2, guidance=1.0, start="image")
    made = list(sample(pipe, prior, requests, config))
    rounded = (colours + 1).mul(127.5).round().div(127.5) - 1
    latents = start(pipe, prior, seeds=[0, 1], classes="garment", kind="image", images=rounded, num_inference_steps=2)
    theirs = pipe(["garment"] * 2, latents=latents, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    torch.testing.assert_close(torch.stack([picture.latents for picture in made]), theirs.images)
    projected = list(sample(pipe, prior, requests, GenerateConfig(steps=2, guidance=1.0, start="image", k=2)))
    latents = start(
        pipe, prior, seeds=[0, 1], classes="garment", kind="image", images=rounded, num_inference_steps=2, k=2
    )
    theirs = pipe(["garment"] * 2, latents=latents, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    torch.testing.assert_close(torch.stack([picture.latents for picture in projected]), theirs.images)
    assert not torch.allclose(projected[0].latents, made[0].latents, atol=1e-3)
    with pytest.raises(ValueError, match="needs a prior"):
        sample(pipe, None, requests, GenerateConfig(start="image", k=2))
    files[1].write_bytes(b"no picture")
    with pytest.raises(ValueError, match="an image start needs pictures: .*1.png"):
        list(sample(pipe, prior, requests, config))


def test_without_a_prior(pipe):
    made = list(sample(pipe, None, REQUESTS[:1], GenerateConfig(**FAST, start="noise")))
    theirs = pipe(REQUESTS[0].prompt, generator=torch.Generator().manual_seed(0), num_inference_steps=4,
                  guidance_scale=3.0)  # fmt: skip
    assert made[0].image.tobytes() == theirs.images[0].tobytes() and made[0].class_name is None


def test_overflow_is_an_error_not_a_black_picture(pipe, prior):
    broken = copy.copy(pipe)
    broken.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="the network overflows in torch.float32"):
        list(sample(broken, prior, REQUESTS[:1], GenerateConfig(**FAST)))
