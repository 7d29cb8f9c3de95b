"""Sampling against plain calls of diffusers' pipeline: one seed an image, whatever the batch and the scheduler."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from onbrand.data.images import to_image
from onbrand.models import pipeline
from onbrand.models.families import encoders_of
from onbrand.models.scheduler import with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.manifest import read_manifest, write_images
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import overflow, plan, run, sample
from onbrand.sampling.start import generator_for, start
from worlds import raises, tiny_pipeline

REQUESTS = [Request(f"garment, item {seed}", seed, negative_prompt="blue" if seed % 2 else "") for seed in range(5)]
PLAIN = [Request(f"garment, item {seed}", seed) for seed in range(5)]
FAST = {"num_inference_steps": 4, "guidance_scale": 3.0, "look_ahead": 0}
LOOKING = FAST | {"look_ahead": None}
"""With a look ahead, as where nothing is asked for."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheduler": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"},
        {"scheduler": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    ],
)
def test_an_image_is_what_the_pipeline_makes_of_the_start(pipe: Any, prior: Any, options: Any) -> None:
    own = pipe.scheduler
    images = list(sample(pipe, prior, REQUESTS[:2], SamplingSettings(**LOOKING, **options)))
    assert pipe.scheduler is own, "the pipeline has its own scheduler back"
    by_hand = copy.copy(pipe)
    values = (options.get(name) for name in ("scheduler", "timestep_spacing", "use_karras_sigmas"))
    by_hand.scheduler = with_options(own, *values)
    prompts = [request.prompt for request in REQUESTS[:2]]
    call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": ["", "blue"]}
    if len(encoders_of(pipe)) > 1:  # "" is zeros, in diffusers only if no image of the call has a negative prompt
        with torch.no_grad():
            _, hidden, _, pooled = pipe.encode_prompt(
                prompts, device="cpu", negative_prompt=call.pop("negative_prompt")
            )
        hidden[0], pooled[0] = 0, 0
        call |= {"negative_prompt_embeds": hidden, "negative_pooled_prompt_embeds": pooled}
    theirs = by_hand(prompts, latents=start(by_hand, prior, prompts, seeds=[0, 1], **call), **call)
    assert [one.image.tobytes() for one in images] == [image.tobytes() for image in theirs.images]
    assert [(image.index, image.class_name, image.batch) for image in images] == [
        (0, "garment", (0, 2)),
        (1, "garment", (0, 2)),
    ]
    assert images[0].image.tobytes() == to_image(pipeline.decode(pipe, images[0].latents[None])[0]).tobytes()


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"scheduler": "EulerAncestralDiscreteScheduler"},
                                     {"scheduler": "DDPMScheduler"}, {"start": "pca"},
                                     {"start": "text", "residual": True}, {"look_ahead": 2}], ids=str)  # fmt: skip
def test_a_seed_makes_the_same_image_in_any_batch(pipe: Any, prior: Any, options: Any) -> None:
    three, one, reverse = (
        {image.request.seed: image.latents for image in sample(pipe, prior, requests, config)}
        for requests, config in (
            (REQUESTS, SamplingSettings(**FAST | options, batch_size=3)),
            (REQUESTS, SamplingSettings(**FAST | options, batch_size=1)),
            (REQUESTS[::-1], SamplingSettings(**FAST | options, batch_size=3)),
        )
    )
    for seed in range(5):
        scale = float(three[seed].abs().max())
        torch.testing.assert_close(one[seed], three[seed], rtol=0, atol=1e-4 * scale)
        torch.testing.assert_close(reverse[seed], three[seed], rtol=0, atol=1e-4 * scale)
    assert not torch.allclose(three[0], three[1], atol=1e-2)


def test_random_steps_are_random_but_not_the_starts_noise_again(pipe: Any, prior: Any) -> None:
    plain, random = ([*sample(pipe, prior, REQUESTS[:1], SamplingSettings(**FAST, eta=eta))] for eta in (0.0, 1.0))
    assert not torch.allclose(plain[0].latents, random[0].latents, atol=1e-2)
    latents = start(pipe, prior, REQUESTS[0].prompt, seeds=0, num_inference_steps=4, look_ahead=0)
    by_hand = pipe(REQUESTS[0].prompt, latents=latents,
                   generator=[generator_for(0, "steps")], eta=1.0, output_type="latent",
                   num_inference_steps=4, guidance_scale=3.0).images  # fmt: skip
    assert torch.equal(by_hand[0], random[0].latents)


def test_no_guidance_takes_one_call_of_the_network(pipe: Any, prior: Any) -> None:
    sizes = []
    handle = pipe.unet.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    try:
        list(sample(pipe, prior, PLAIN[:3], SamplingSettings(num_inference_steps=2, guidance_scale=1.0, look_ahead=0)))
        list(
            sample(pipe, prior, REQUESTS[:3], SamplingSettings(num_inference_steps=2, guidance_scale=2.0, look_ahead=1))
        )
    finally:
        handle.remove()
    assert sizes == [3, 3, 6, 6, 6], "two steps without guidance; a look and two steps with it"


def test_what_is_done_is_not_made_again_and_the_rest_is_the_same(pipe: Any, prior: Any) -> None:
    config = SamplingSettings(**FAST, batch_size=2, scheduler="EulerDiscreteScheduler")
    whole = {image.index: image for image in sample(pipe, prior, REQUESTS, config)}
    calls, work = [], plan(pipe, prior, REQUESTS, config)
    handle = pipe.unet.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    try:
        rest = list(run(work, done={0, 1, 3}))
    finally:
        handle.remove()
    assert work.start.scheduler.step_index is None, "a plan may be run again"
    assert [image.index for image in rest] == [2, 4] and calls == [4] * 4 + [2] * 4
    assert all(image.image.tobytes() == whole[image.index].image.tobytes() for image in rest)


def test_all_is_checked_at_the_call(pipe: Any, prior: Any) -> None:
    """Before the first image is asked for, and for every request."""
    two = copy.copy(REQUESTS)
    with raises("prior", "'a shoe'", "'garment', 'garment on a person'"):
        sample(pipe, prior, [*two, Request("a shoe", 1)])
    with raises("prior", "request 5", "'shoe'", "'garment', 'garment on a person'"):
        sample(pipe, prior, [*two, Request("garment", 1, "shoe")])
    with raises("prior", "a.txt line 9", "'shoe'"):
        sample(pipe, prior, [*two, Request("garment", 1, "shoe", place="a.txt line 9")])
    with raises("request", "one request"):
        sample(pipe, prior, [])
    with raises("scheduler", "'Nonsense'"):
        sample(pipe, prior, two, SamplingSettings(scheduler="Nonsense"))
    with raises("option", "eta 0.5", "EulerDiscreteScheduler", "DDIMScheduler"):
        sample(pipe, prior, two, SamplingSettings(scheduler="EulerDiscreteScheduler", eta=0.5))
    with raises("start", "OB003", "timestep 950", "timestep 901"):
        window = {"gain": "window", "start": "mean", "start_timestep": 950}
        sample(pipe, prior, two, SamplingSettings(num_inference_steps=10), trained_start=window)
    with raises("request", "image start", "5 of 5", "request 0 first"):
        sample(pipe, prior, two, SamplingSettings(start="image"))
    with pytest.warns(UserWarning, match="1 of 7 texts are longer than the tokenizer's 32 tokens"):
        sample(pipe, prior, [*two, Request("garment " + "x" * 40, 1)])


def test_image_start_from_files(pipe: Any, prior: Any, tmp_path: Path) -> None:
    """The image's own latent (the paper's control), from a file that is padded to the prior's size."""
    colours = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, colour in zip(files, colours, strict=True):
        to_image(colour).save(file)
    requests = [Request("garment", seed, image=str(file)) for seed, file in enumerate(files)]
    config = SamplingSettings(num_inference_steps=2, guidance_scale=1.0, start="image")
    images = list(sample(pipe, prior, requests, config))
    pixels = (colours + 1).mul(127.5).round().div(127.5) - 1
    latents = start(pipe, prior, seeds=[0, 1], classes="garment", start="image", images=pixels, num_inference_steps=2)
    theirs = pipe(["garment"] * 2, latents=latents, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    torch.testing.assert_close(torch.stack([image.latents for image in images]), theirs.images)
    projections = list(
        sample(pipe, prior, requests, SamplingSettings(num_inference_steps=2, guidance_scale=1.0, start="image", k=2))
    )
    latents = start(
        pipe, prior, seeds=[0, 1], classes="garment", start="image", images=pixels, num_inference_steps=2, k=2
    )
    theirs = pipe(["garment"] * 2, latents=latents, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    torch.testing.assert_close(torch.stack([image.latents for image in projections]), theirs.images)
    assert not torch.allclose(projections[0].latents, images[0].latents, atol=1e-3)
    with raises("start", "k = 2", "a prior"):
        sample(pipe, None, requests, SamplingSettings(start="image", k=2))
    files[1].write_bytes(b"no image")
    with raises("request", files[1], "header"):
        list(sample(pipe, prior, requests, config))


SAYING = [
    ([Request("garment (red:1.4)", 0)], {}, "request 0 has '\\(red:1.4\\)'; weights and tags of other programs"),
    ([Request("garment, red++", 0)], {}, r"has 'red\+\+'; weights"),
    ([Request("garment (red dress)1.3", 0)], {}, r"has '\(red dress\)1.3'; weights"),
    ([Request("garment [red:blue:0.5]", 0)], {}, r"has '\[red:blue:0.5\]'; weights"),
    ([Request("garment [red|blue]", 0)], {}, r"has '\[red\|blue\]'; weights"),
    ([Request("garment {red|blue}", 0)], {}, r"has '\{red\|blue\}'; weights"),
    ([Request("garment, __colour__", 0)], {}, "has '__colour__'; weights"),
    ([Request("garment, embedding:shoes", 0)], {}, "has 'embedding:shoes'; weights"),
    ([Request("garment", 0, negative_prompt="((dark))")], {}, "'\\(\\(dark\\)\\)'"),
    ([Request("garment", 0), Request("garment <lora:a:1>", 1, place="a.txt line 9")], {}, "line 9 has '<lora:a:1>'"),
    ([Request("garment", 0, negative_prompt="dark")], {"guidance_scale": 1}, "'dark'; guidance_scale 1 does not"),
    ([Request("garment", 0, conditioning=("a.png",))], {}, "names a.png; .*this model has none"),
    ([Request("garment", 0, asked={"num_inference_steps": 9})] * 2, {},
     "asks for num_inference_steps 9 \\(and 1 more\\); all images of a run have num_inference_steps 4"),
    ([Request("garment", 0, asked={"guidance_scale": 9.5})], {}, "guidance_scale 9.5; all images .*_scale 3.0"),
    ([Request("garment", 0, image="a.png", asked={"start": "image"})], {}, "start image; all .* have start text"),
    ([Request("garment", 0, negative_prompt="x" * 40)], {}, "1 of 2 texts are longer .* loses 'xxxx"),
]  # fmt: skip
"""Requests -> what of them nothing reads."""


@pytest.mark.parametrize(("requests", "options", "words"), SAYING, ids=str)
def test_what_nothing_reads_is_warned_of_once(pipe: Any, prior: Any, requests: Any, options: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=words) as caught:
        plan(pipe, prior, requests, SamplingSettings(**FAST | options))
    assert len(caught) == 1


def test_what_the_run_has_is_not_warned_of(pipe: Any, prior: Any) -> None:
    asked = {"num_inference_steps": 4, "guidance_scale": 3.0}
    request = Request("garment (a red one), 4:3, [new]", 0, negative_prompt="dark", asked=asked, height=16)
    plan(pipe, prior, [request], SamplingSettings(**FAST))


def broken_pipe(part: str, value: float) -> Any:
    """A pipeline of its own, whose UNet, VAE or text encoder gives numbers that are not finite."""
    other = tiny_pipeline()
    with torch.no_grad():
        if part == "text_encoder":  # of those prompts alone that hold a tilde
            token = other.tokenizer.convert_tokens_to_ids("~</w>")
            other.text_encoder.get_input_embeddings().weight[token] = value
        elif part == "vae":
            other.vae.decoder.conv_out.bias.fill_(value)
        else:
            other.unet.conv_out.bias.fill_(value)
    return other


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_model_that_gives_no_numbers_makes_no_image_and_is_given_up(part: str, value: float) -> None:
    other, calls = broken_pipe(part, value), []
    other.unet.register_forward_hook(lambda *args: calls.append(1))
    settings = SamplingSettings(**FAST | {"num_inference_steps": 1, "start": "noise", "batch_size": 5})
    requests = [Request("a", seed) for seed in range(10, 30)]
    with raises("image", "image 0 of request 0 (seed 10)", "overflows in float32", "another model"):
        next(sample(other, None, requests, settings))
    calls.clear()
    with raises("image", "none of the first 10", "request 0 first (seed 10)", "overflows in float32"):
        assert not any(image.finite for image in run(plan(other, None, requests, settings)))
    assert len(calls) == 2, "of 4 batches"
    half = copy.copy(other)
    half.unet, half.vae = other.unet.to(torch.bfloat16), other.vae
    assert "load the model with dtype float32" in overflow(plan(half, None, requests, settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_of_a_batch_the_images_whose_numbers_are_finite_are_made(value: float, tmp_path: Path) -> None:
    requests = [Request("a ~" if seed in (1, 4) else "a", seed) for seed in range(6)]
    settings = SamplingSettings(**FAST | {"num_inference_steps": 1, "start": "noise", "batch_size": 3})
    results = []
    with raises("image", "2 of 6 images", "(1, 4)", tmp_path):
        for image in write_images(tmp_path, broken_pipe("text_encoder", value), None, requests, settings):
            results.append(image)
    whole = [image for image in sample(tiny_pipeline(), None, requests, settings) if image.index not in (1, 4)]
    assert [image.index for image in results] == [0, 2, 3, 5] == sorted(read_manifest(tmp_path))
    assert [image.image.tobytes() for image in results] == [image.image.tobytes() for image in whole]


def test_without_a_prior(pipe: Any) -> None:
    images = list(sample(pipe, None, REQUESTS[:1], SamplingSettings(**FAST, start="noise")))
    theirs = pipe(REQUESTS[0].prompt, generator=torch.Generator().manual_seed(0), num_inference_steps=4,
                  guidance_scale=3.0)  # fmt: skip
    assert images[0].image.tobytes() == theirs.images[0].tobytes() and images[0].class_name is None
