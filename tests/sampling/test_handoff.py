"""The hand-off through diffusers' own schedulers and pipeline: its closed form, and the table.

docs/concepts/method.md, section 10.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback

import onbrand
from core.test_oracle import BACKGROUND, TABLE
from onbrand.core import estimate, target
from onbrand.models import pipeline
from onbrand.models.families import encoders_of
from onbrand.models.scheduler import latents_for, schedule_of, set_steps, with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.handoff import HandOff
from onbrand.sampling.manifest import remake, write_images
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.sampling.start import noise_for, start
from worlds import raises

WINDOW = {"gain": "window", "start": "mean", "k": 0, "start_timestep": 950}
NAMES = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
MULTISTEP = NAMES[2:]
SEEDS = [3, 4]


def with_scheduler(pipe: Any, name: Any, spacing: Any = "leading", **options: Any) -> Any:
    other = copy.copy(pipe)
    scheduler = with_options(pipe.scheduler, name, spacing)
    other.scheduler = type(scheduler).from_config(scheduler.config, **options)
    return other


def run(pipe: Any, latents: Any, steps: Any, network: Any, callback: Any = None, dtype: Any = torch.float32) -> Any:
    """A pipeline's loop: every state after its step, in VP space, and what network(x, t, abar) said of x0 there."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    x, states, options = (latents * scheduler.init_noise_sigma).to(dtype), [], []
    for step, t in enumerate(scheduler.timesteps):
        network_input = scheduler.scale_model_input(x, t)
        abar = float(torch.as_tensor(scheduler.alphas_cumprod)[int(t)])
        x0_hat = network(network_input.float(), float(t), abar)
        output = target(
            scheduler.config.prediction_type, x0_hat, estimate("sample", x0_hat, network_input.float(), abar)[1], abar
        )
        x = scheduler.step(output.to(dtype), t, x).prev_sample
        if callback is not None:
            x = callback(pipe, step, t, {"latents": x})["latents"]
        after = scheduler.timesteps[step + 1] if step + 1 < len(scheduler.timesteps) else None
        states.append(x if after is None else scheduler.scale_model_input(x, after))
        options.append(x0_hat)
    return states, options


def curve(x: Any, t: Any, abar: Any) -> Any:
    """A network that is no line, and no two steps alike."""
    return torch.tanh(2 * x + t / 1000) + 0.3 * x.flip(-1)


def entry_of(pipe: Any, steps: Any, shape: Any = (4, 8, 8), x_start: Any = None) -> Any:
    """`latents=`, and what the first step has of them in VP space."""
    noise = noise_for(SEEDS, shape)
    x_start = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)) if x_start is None else x_start
    live = set_steps(pipe.scheduler, steps)
    return latents_for(live, x_start, noise), onbrand.x_init(x_start, noise, schedule_of(live).abar)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("steps", "first"), [(50, 950), (50, 900), (20, 700)], ids=["one or two inside", "four", "six"]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_its_closed_form(pipe: Any, name: Any, steps: Any, first: Any, prediction_type: Any) -> None:
    """After the window sqrt(abar') x0_hat + sqrt(1 - abar') eps; until then, and one step on, DDIM's formula."""
    pipe = with_scheduler(pipe, name, prediction_type=prediction_type)
    (latents, x), noise = entry_of(pipe, steps), noise_for(SEEDS, (4, 8, 8))
    trained = WINDOW | {"start_timestep": first}
    hand = HandOff(pipe, latents, seeds=SEEDS, zero_mean=False, num_inference_steps=steps, trained_start=trained)
    states, estimates = run(pipe, latents, steps, curve, hand)
    repeat, _ = run(pipe, latents, steps, curve, hand)
    assert all(map(torch.equal, states, repeat)), "serves several runs"
    if name in MULTISTEP:
        assert pipe.scheduler.lower_order_nums == 2, "of full order again"
    abars = [float(pipe.scheduler.alphas_cumprod[int(t)]) for t in pipe.scheduler.timesteps]
    last = sum(t >= first for t in pipe.scheduler.timesteps.tolist()) - 1
    for step in range(last + 2):
        eps = noise if step == last else estimate("sample", estimates[step], x, abars[step])[1]
        expected = math.sqrt(abars[step + 1]) * estimates[step] + math.sqrt(1 - abars[step + 1]) * eps
        torch.testing.assert_close(states[step], expected, rtol=1e-4, atol=2e-4)
        x = states[step]
    plain, _ = run(pipe, latents, steps, curve)
    assert float((plain[last] - states[last]).abs().max()) > 0.05, "not the estimate's state"


def test_ddim_goes_where_it_says_itself(pipe: Any) -> None:
    """21 linspaced steps: DDIM steps down by 1000 // 21 = 47, to 952, while the network is next called at 949."""
    pipe = with_scheduler(pipe, "DDIMScheduler", "linspace")
    latents, _ = entry_of(pipe, 21)
    hand = HandOff(pipe, latents, seeds=SEEDS, zero_mean=False, num_inference_steps=21, trained_start=WINDOW)
    states, estimates = run(pipe, latents, 21, curve, hand)
    assert pipe.scheduler.timesteps[:2].tolist() == [999, 949]
    abar = float(pipe.scheduler.alphas_cumprod[952])
    expected = math.sqrt(abar) * estimates[0] + math.sqrt(1 - abar) * noise_for(SEEDS, (4, 8, 8))
    torch.testing.assert_close(states[0], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "abar"), [(name, 1.0) for name in NAMES[1:]] + [("DDIMScheduler", 1 - 0.00085)])
def test_where_the_windows_step_is_the_only_one(pipe: Any, name: Any, abar: Any) -> None:
    """It ends at sigma 0, where no noise is left to hand over; DDIM at abar_0."""
    pipe = with_scheduler(pipe, name, "trailing")
    latents, _ = entry_of(pipe, 1)
    hand = HandOff(pipe, latents, seeds=SEEDS, zero_mean=False, num_inference_steps=1, trained_start=WINDOW)
    states, estimates = run(pipe, latents, 1, curve, hand)
    expected = math.sqrt(abar) * estimates[0] + math.sqrt(1 - abar) * noise_for(SEEDS, (4, 8, 8))
    torch.testing.assert_close(states[0], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_is_close(pipe: Any) -> None:
    """20 steps in bfloat16 (8 bits): the rounding of x and x', some 35 times in x0_hat, which enters by sqrt(.014)."""
    pipe = with_scheduler(pipe, "DDIMScheduler")
    latents, _ = entry_of(pipe, 20)
    hand = HandOff(pipe, latents.bfloat16(), seeds=SEEDS, zero_mean=False, trained_start=WINDOW)
    states, estimates = run(pipe, latents.bfloat16(), 20, curve, hand, torch.bfloat16)
    abar = float(pipe.scheduler.alphas_cumprod[901])
    expected = math.sqrt(abar) * estimates[0] + math.sqrt(1 - abar) * noise_for(SEEDS, (4, 8, 8))
    assert states[0].dtype == torch.bfloat16
    torch.testing.assert_close(states[0].float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hand", [False, True], ids=["paper", "hand-off"])
def test_the_exact_table(pipe: Any, name: Any, hand: Any) -> None:
    """docs/concepts/method.md, section 5: share of the mean, variance ratio and text slope.

    An ideal network after mean offset training. A run is linear in (1, text, eps), so least squares over many elements
    give its coefficients. The solvers of higher order have another variance, but no other mean and slope.
    """
    mu, vm, lc = BACKGROUND
    spacing = "leading" if name in NAMES[:2] else "trailing"
    pipe = with_scheduler(pipe, name, spacing, final_sigmas_type="sigma_min")
    noise = noise_for(SEEDS, (1, 128, 128))  # large, so that mu, as large as 110, does not pass for another noise
    text = math.sqrt(vm) * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    latents, _ = entry_of(pipe, 20, noise.shape[1:], torch.full_like(noise, mu))

    def network(x: Any, t: Any, abar: Any) -> Any:
        terms = torch.stack([mu + text, text, x])  # the oracle's coefficients, but as numbers
        gain = math.sqrt(abar / (1 - abar)) if t >= 950 else 0.0
        k = math.sqrt(1 - abar) * gain
        c = math.sqrt(abar) - k
        return terms[0] + c * lc / (c**2 * lc + 1 - abar) * (x - c * terms[0] - k * mu)

    callback = HandOff(pipe, latents, seeds=SEEDS, zero_mean=False, trained_start=WINDOW) if hand else None
    x0 = run(pipe, latents, 20, network, callback)[0][-1]
    columns = torch.stack([torch.ones(noise.numel()), text.flatten(), noise.flatten()], 1).double()
    coefficients = torch.linalg.lstsq(columns, x0.double().flatten()).solution
    share, slope = float(coefficients[0]) / mu, float(coefficients[1])
    variance = (slope**2 * vm + float(coefficients[2]) ** 2) / (vm + lc)
    expected = TABLE["the same + exact hand-off" if hand else "mean offset (paper)"][3]
    if name in NAMES[:2]:
        assert (share, variance, slope) == pytest.approx(expected, abs=2e-3)
    elif hand:
        assert (share, slope) == pytest.approx((1, 1), abs=1e-3) and variance > 0.5
    else:
        assert slope < 0.9, "that there is something to repair"


PROMPTS, REQUESTS = ["garment", "garment"], [Request("garment", seed) for seed in SEEDS]
FAST = {"num_inference_steps": 20, "guidance_scale": 1.0, "batch_size": 2}


@pytest.mark.parametrize(("name", "zero_mean"), [*((name, False) for name in NAMES), (NAMES[0], True)])
def test_the_real_pipeline(pipe: Any, prior: Any, name: Any, zero_mean: Any) -> None:
    """By trace: what the network next sees holds the x0_hat that it said and the seeds' noise."""
    config = SamplingSettings(
        **FAST, scheduler=name, timestep_spacing="trailing", handoff=True, trace=2, zero_mean=zero_mean
    )
    images = list(sample(pipe, prior, REQUESTS, config, WINDOW))
    abar = float(pipe.scheduler.alphas_cumprod[949])
    noise = noise_for(SEEDS, (4, 8, 8), zero_mean)
    for image, eps in zip(images, noise, strict=True):
        expected = math.sqrt(abar) * image.trace.x0_hat[0] + math.sqrt(1 - abar) * eps
        torch.testing.assert_close(image.trace.x_t[1], expected, rtol=1e-3, atol=1e-3)
    latents = torch.stack([image.latents for image in images])
    other = with_scheduler(pipe, name, "trailing")
    entry = start(other, prior, PROMPTS, seeds=SEEDS, zero_mean=zero_mean, trained_start=WINDOW)
    arguments = {"latents": entry, "num_inference_steps": 20, "output_type": "latent", "guidance_scale": 1.0}
    hand = onbrand.HandOff(other, entry, seeds=SEEDS, zero_mean=zero_mean, trained_start=WINDOW)
    assert torch.equal(other(PROMPTS, callback_on_step_end=hand, **arguments).images, latents)
    assert not torch.allclose(other(PROMPTS, **arguments).images, latents, atol=1e-2)


def test_beside_other_callbacks_and_with_recorded_weights(pipe: Any, prior: Any, tmp_path: Path) -> None:
    """diffusers' own chain of callbacks; a saved model says its window itself; guidance, one seed."""
    pipeline.save(pipe, tmp_path / "model", prior, WINDOW)
    model = pipeline.load(tmp_path / "model")
    model.set_progress_bar_config(disable=True)
    entry = start(model, prior, PROMPTS[:1], seeds=5)
    hand = HandOff(model, entry, seeds=5, zero_mean=False)
    cutoff_class = SDXLCFGCutoffCallback if len(encoders_of(pipe)) > 1 else SDCFGCutoffCallback
    cutoff = cutoff_class(cutoff_step_ratio=None, cutoff_step_index=5)
    one, two, alone = (
        model(PROMPTS[:1], latents=entry, num_inference_steps=20, output_type="latent",
               callback_on_step_end=MultiPipelineCallbacks(callbacks)).images
        for callbacks in ([hand, cutoff], [cutoff, hand], [cutoff])
    )  # fmt: skip
    assert torch.equal(one, two) and not torch.allclose(one, alone, atol=1e-2)
    with raises("handoff", "20 steps of DDIMScheduler (951 to 1)", "25 steps of DDIMScheduler (961 to 1)"):
        model(PROMPTS[:1], latents=entry, num_inference_steps=25, callback_on_step_end=hand)


def test_a_folder_keeps_to_it(pipe: Any, prior: Any, tmp_path: Path) -> None:
    """Resumed with and without it is two runs; and made again from the manifest, images are the same to the byte."""
    config = SamplingSettings(**FAST, handoff=True)
    list(write_images(tmp_path / "p", pipe, prior, REQUESTS, config, WINDOW))
    with raises("folder", tmp_path / "p", "settings.handoff", True, False):
        write_images(tmp_path / "p", pipe, prior, REQUESTS, SamplingSettings(**FAST), WINDOW)
    for index in range(2):
        image = remake(tmp_path / "p", index, pipe, prior)
        image.image.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "p" / f"{index:05d}.png").read_bytes()
    list(write_images(tmp_path / "without", pipe, prior, REQUESTS, SamplingSettings(**FAST), WINDOW))
    assert (tmp_path / "without" / "00000.png").read_bytes() != (tmp_path / "p" / "00000.png").read_bytes()
