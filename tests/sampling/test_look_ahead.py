"""The look ahead against the theory of an ideal network, diffusers' own estimates, and a foreign pipeline."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import onbrand
from onbrand.core import Gaussian, Prior
from onbrand.models.controlnet import new_controlnet
from onbrand.models.pipeline import embed
from onbrand.models.scheduler import scales, set_steps, with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.look_ahead import GUIDANCE
from onbrand.sampling.manifest import remake, write_images
from onbrand.sampling.noise import generator_for, noise_for, noise_of
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import plan, sample
from onbrand.sampling.start import start
from worlds import predict, raises, tiny_pipeline, tiny_prior

PROMPTS, SEEDS = ["garment, a red coat", "garment on a person, a dress"], [11, 12]
CLASSES = ["garment", "garment on a person"]
MU = 110.0


def x_start_of(pipe: Any, prior: Any, latents: Any, seeds: Any = SEEDS, steps: Any = 20) -> Any:
    """What stands in latents beside the seeds' noise, which had its channel means taken out."""
    live = set_steps(pipe.scheduler, steps)
    scale, abar = scales(live)
    noise = noise_for(seeds, latents.shape[1:], zero_mean=True)
    return (latents * float(live.init_noise_sigma) / scale - math.sqrt(1 - abar) * noise) / math.sqrt(abar)


class Ideal(torch.nn.Module):
    """The exact posterior mean of x0 = m + N(0, variance) in every element, as a UNet that predicts epsilon; m lies off
    MU by what the last number of the prompt's embedding says."""

    def __init__(self, unet: Any, abars: Any, variance: Any) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self.add_embedding = getattr(unet, "add_embedding", None)  # whose width StableDiffusionXLPipeline reads
        self.abars, self.variance = abars, variance

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **_: Any) -> Any:
        abar = self.abars[int(timestep)]
        m = MU + 30 * encoder_hidden_states[:, -1, 0].double()[:, None, None, None]
        trust = abar.sqrt() * self.variance / (abar * self.variance + 1 - abar)
        x0 = m + trust * (sample.double() - abar.sqrt() * m)
        return (((sample.double() - abar.sqrt() * x0) / (1 - abar).sqrt()).to(sample),)


@pytest.fixture(scope="module")
def fine() -> Any:
    """A pipeline that samples in 1,000 steps, down to x0 itself, and a prior whose components are all directions."""
    pipe = tiny_pipeline(prediction_type="epsilon")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=0, set_alpha_to_one=True)
    base = tiny_prior(pipe, ("garment",), text=False)
    every = Gaussian(torch.full((4, 8, 8), MU), torch.eye(256), torch.full((256,), 300.0), 256 * 300.0, 100)
    return pipe, Prior({"garment": every}, base.provenance)


@pytest.mark.parametrize("looks", range(5))
@pytest.mark.parametrize("variance", [300.0, 950.0])
def test_an_ideal_network_keeps_the_shares_of_the_theory(fine: Any, looks: Any, variance: Any) -> None:
    """docs/concepts/method.md, section 7, end to end through `sample`: what it makes is linear in 1, m and each noise,
    so least squares gives the coefficients, and with them the shares of mean, prompt and variance, exactly."""
    pipe, prior = copy.copy(fine[0]), fine[1]
    abars = pipe.scheduler.alphas_cumprod.double()
    pipe.unet = Ideal(fine[0].unet, abars, variance)
    requests = [Request(f"garment {seed * 7}", seed) for seed in range(4)]
    config = SamplingSettings(
        start="mean", zero_mean=False, look_ahead=looks, num_inference_steps=1000, guidance_scale=1.0
    )
    x0 = torch.stack([image.latents for image in sample(pipe, prior, requests, config)]).double()

    hidden, _ = embed(pipe, [request.prompt for request in requests])
    prompt = (30 * hidden[:, -1, 0].double())[:, None, None, None].expand_as(x0)
    draws = [noise_for(range(4), (4, 8, 8))]
    draws += [noise_of([generator_for(s, f"look {n}") for s in range(4)], (4, 8, 8)) for n in range(1, looks + 1)]
    parts = torch.stack([torch.full_like(x0, MU), prompt, *(noise.double() for noise in draws)], -1).flatten(0, -2)
    shares = torch.linalg.lstsq(parts, x0.flatten()[:, None], driver="gelsd")
    mean, text, *noises = shares.solution.flatten().tolist()
    assert float((parts @ shares.solution - x0.flatten()[:, None]).abs().max()) < 0.02, "linear, and in nothing else"

    abar = float(abars[999])
    q2 = abar * variance / (abar * variance + 1 - abar)
    gain = q2 / math.sqrt(abar)
    of_looks = sum(q2 ** (2 * n) for n in range(looks)) * gain**2 * (1 - abar)
    assert mean == pytest.approx(1, abs=1e-3)
    assert text == pytest.approx(1 - math.sqrt(q2) ** (2 * looks + 1), abs=1e-3)
    assert sum(c**2 for c in noises) / variance == pytest.approx(
        (q2 * of_looks + (1 - q2) * variance) / variance, abs=1e-3
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("guidance", [1.0, 1.25, 7.5])
def test_a_look_is_the_schedulers_own_estimate_in_the_components(prediction_type: Any, guidance: Any) -> None:
    pipe = tiny_pipeline(prediction_type=prediction_type)
    prior = tiny_prior(pipe, tuple(CLASSES))
    call = {"guidance_scale": guidance, "negative_prompt": ["blue", "green"]}
    latents = start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=2, **call)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(20)
    texts = embed(pipe, PROMPTS), embed(pipe, call["negative_prompt"])
    scale, x_start = min(guidance, GUIDANCE), prior.mean(CLASSES)
    for number in (1, 2):
        noise = noise_of([generator_for(seed, f"look {number}") for seed in SEEDS], (4, 8, 8), zero_mean=True)
        x = scheduler.add_noise(x_start, noise, scheduler.timesteps[:1])
        with torch.no_grad():
            output, plain = (predict(pipe.unet, x, 951, *text) for text in texts)
        x0_hat = scheduler.step(plain + scale * (output - plain), 951, x).pred_original_sample
        parts = [(x - prior.gaussians[c].mean).flatten() for x, c in zip(x0_hat, CLASSES, strict=True)]
        basis = [prior.gaussians[name].components for name in CLASSES]
        shift = torch.stack([(part @ p.T @ p).reshape(4, 8, 8) for part, p in zip(parts, basis, strict=True)])
        x_start = prior.mean(CLASSES) + shift
    expected = scheduler.add_noise(x_start, noise_for(SEEDS, (4, 8, 8), zero_mean=True), scheduler.timesteps[:1])
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    loose = start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1, look_ahead_projection=False, **call)
    assert (x_start_of(pipe, prior, loose) - prior.project(x_start_of(pipe, prior, loose), CLASSES)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep",
                                  "HeunDiscrete", "LMSDiscrete", "DDPM", "PNDM"])  # fmt: skip
def test_every_scheduler_sees_what_ddim_sees(name: Any) -> None:
    """From one first timestep all ask the network the same."""
    pipe = tiny_pipeline()
    prior = tiny_prior(pipe, tuple(CLASSES))
    x_starts = {}
    for each in ("DDIM", name):
        other = copy.copy(pipe)
        other.scheduler = with_options(pipe.scheduler, f"{each}Scheduler", "trailing")
        if "skip_prk_steps" in other.scheduler.config:
            other.scheduler = type(other.scheduler).from_config(other.scheduler.config, skip_prk_steps=True)
        state = torch.get_rng_state()
        latents = start(other, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=2)
        assert torch.equal(torch.get_rng_state(), state), "nothing of torch's own randomness is used up"
        x_starts[each] = x_start_of(other, prior, latents)
    scale = float((x_starts["DDIM"] - prior.mean(CLASSES)).abs().max())
    assert scale > 0.1, "a look moves the start"
    torch.testing.assert_close(x_starts[name], x_starts["DDIM"], rtol=0, atol=5e-3 * max(scale, 1))


@pytest.mark.parametrize("start_name", ["mean", "pca", "text", "image"])
def test_every_start_can_look_and_a_seed_looks_alike_in_any_batch(pipe: Any, prior: Any, start_name: Any) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    options = {"start": start_name, "look_ahead": 2} | ({"images": images} if start_name == "image" else {})
    whole = start(pipe, prior, PROMPTS, seeds=SEEDS, **options)
    blind = start(pipe, prior, PROMPTS, seeds=SEEDS, **options | {"look_ahead": 0})
    assert (whole - blind).abs().mean() > 1e-3
    x_start = x_start_of(pipe, prior, whole)
    torch.testing.assert_close(prior.project(x_start, CLASSES), x_start, rtol=1e-3, atol=2e-3)
    for i in range(2):
        alone = options | ({"images": images[i : i + 1]} if start_name == "image" else {})
        part = start(pipe, prior, PROMPTS[i], seeds=SEEDS[i], **alone)
        torch.testing.assert_close(part[0], whole[i], rtol=1e-4, atol=1e-4)


def test_the_pipeline_is_left_as_it_was(pipe: Any, prior: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = copy.copy(pipe)
    scheduler, bar = pipe.scheduler, {"desc": "theirs"}
    pipe._progress_bar_config = dict(bar)
    before = pipe(PROMPTS, latents=noise_for(SEEDS, (4, 8, 8)), num_inference_steps=2, output_type="latent").images
    assert "theirs" in capsys.readouterr().err
    start(pipe, prior, PROMPTS, seeds=SEEDS, look_ahead=1)
    assert pipe.scheduler is scheduler and pipe._progress_bar_config == bar
    assert "theirs" not in capsys.readouterr().err, "a look draws no bar of the pipeline's"
    after = pipe(PROMPTS, latents=noise_for(SEEDS, (4, 8, 8)), num_inference_steps=2, output_type="latent").images
    assert torch.equal(after, before)


def test_a_controlnet_is_asked_with_its_control_images(pipe: Any, prior: Any) -> None:
    both = new_controlnet(pipe)
    with torch.no_grad():
        for weight in both.controlnet.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    arguments = {"seeds": SEEDS, "start": "mean", "look_ahead": 1}
    dark, light = (start(both, prior, PROMPTS, **arguments, image=torch.full((2, 3, 16, 16), v)) for v in (0.0, 1.0))
    assert (dark - light).abs().mean() > 1e-4
    assert (dark - start(pipe, prior, PROMPTS, **arguments)).abs().mean() > 1e-4


def test_looks_where_nothing_is_asked_for(pipe: Any, prior: Any) -> None:
    """By docs/research/results.md: two from the mean, one from the text, none where there is nothing to gain."""

    def usual(weights: Any = None, other: Any = prior, **options: Any) -> Any:
        return plan(
            pipe, other, [Request(PROMPTS[0], 1)], SamplingSettings(**options), trained_start=weights
        ).config.look_ahead

    assert [usual(start=start_name) for start_name in ("mean", "text", "pca", "noise")] == [2, 1, 0, 0]
    assert usual({"gain": "constant", "start": "mean", "start_timestep": 951}, start="mean") == 0
    flat = {n: replace(g, components=g.components[:0], variances=g.variances[:0]) for n, g in prior.gaussians.items()}
    assert usual(other=Prior(flat, prior.provenance), start="mean") == 0
    blind = start(pipe, prior, classes=CLASSES, seeds=SEEDS, start="mean")
    assert torch.equal(blind, start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=0)), (
        "no prompts, no look"
    )


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (
            {"trained_start": {"gain": "constant", "start": "mean", "start_timestep": 951}},
            ("start", "look_ahead 1", "start mean"),
        ),
        ({"start": "noise"}, ("start", "look_ahead 1", "from noise")),
        ({"prior": None, "start": "image"}, ("start", "look_ahead 1", "no prior", "look_ahead_projection")),
        (
            {"prior": "flat"},
            ("start", "look_ahead 1", "'garment', 'garment on a person'", "look_ahead_projection"),
        ),
        ({"look_ahead": -1}, ("option", "look_ahead", "at least 0", -1)),
        ({"look_ahead": 0, "look_ahead_projection": False}, ("option", "look_ahead_projection False", "look_ahead 0")),
        ({"prompts": None, "classes": "garment"}, ("start", "look_ahead 1", "prompts")),
    ],
)
def test_what_a_look_cannot_be_made_of(pipe: Any, prior: Any, options: Any, values: Any) -> None:
    flat = {n: replace(g, components=g.components[:0], variances=g.variances[:0]) for n, g in prior.gaussians.items()}
    choice = {"flat": Prior(flat, prior.provenance)}.get(options.get("prior", prior), options.get("prior", prior))
    prompts = options.get("prompts", PROMPTS)
    arguments = {name: value for name, value in options.items() if name not in ("prior", "prompts")}
    with raises(*values):
        start(pipe, choice, prompts, seeds=SEEDS, **{"start": "mean", "look_ahead": 1} | arguments)


def test_an_argument_that_the_pipeline_does_not_take_is_refused(pipe: Any, prior: Any) -> None:
    with raises("start", type(pipe).__name__, "got guidance:"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1, guidance=5)


def test_zero_terminal_snr_has_nothing_to_look_from(prior: Any) -> None:
    pipe = tiny_pipeline(prediction_type="v_prediction")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    with (
        pytest.warns(UserWarning, match="OB005"),
        raises("start", "look_ahead 1", "weight 0", "DDIMScheduler", "zero terminal SNR"),
    ):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1)


def test_an_estimate_that_is_no_number_is_an_error(prior: Any) -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("inf"))
    with raises("model", "overflows in float32", "another model"):
        start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1)


def test_an_image_that_looked_is_made_again_from_its_line(pipe: Any, prior: Any, tmp_path: Path) -> None:
    requests = [Request(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    config = SamplingSettings(start="mean", num_inference_steps=4, guidance_scale=3.0)
    images = list(write_images(tmp_path, pipe, prior, requests, config))
    copies = remake(tmp_path, 1, pipe, prior)
    assert copies.image.tobytes() == images[1].image.tobytes()
    assert list(write_images(tmp_path, pipe, prior, requests, config)) == [], "the same command finds all of it done"
    with raises("folder", tmp_path, "settings.look_ahead", "was 2", "is 0"):
        list(write_images(tmp_path, pipe, prior, requests, replace(config, look_ahead=0)))


def test_the_public_name_takes_what_the_pipeline_takes(pipe: Any, prior: Any) -> None:
    """Two lines in a foreign pipeline."""
    call = {"num_inference_steps": 4, "guidance_scale": 1.2}
    latents = onbrand.start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1, **call)
    other = onbrand.start(pipe, prior, PROMPTS, seeds=SEEDS, start="mean", look_ahead=1, num_inference_steps=4)
    assert not torch.equal(latents, other), "guidance is heeded"
    theirs = pipe(PROMPTS, latents=latents, output_type="latent", **call).images
    requests = [Request(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    config = SamplingSettings(start="mean", look_ahead=1, num_inference_steps=4, guidance_scale=1.2)
    ours = torch.stack([image.latents for image in sample(pipe, prior, requests, config)])
    torch.testing.assert_close(theirs.float(), ours, rtol=1e-4, atol=1e-4)
