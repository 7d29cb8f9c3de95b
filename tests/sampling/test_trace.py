"""x_t and x0_hat by step against the x0 that diffusers' own schedulers estimate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from onbrand.models.scheduler import with_options
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from worlds import tiny_pipeline, tiny_prior

REQUESTS = [Request(f"garment {seed}", seed) for seed in range(3)]
OWN = ("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete")
BY_CONVERSION = ("DPMSolverMultistep", "UniPCMultistep", "DPMSolverSinglestep")


def estimates_of(monkeypatch: pytest.MonkeyPatch, name: Any) -> Any:
    """What the scheduler itself takes for x0, step by step."""
    scheduler_class, estimates = getattr(diffusers, name + "Scheduler"), []
    if name in OWN:
        step = scheduler_class.step

        def tell(self: Any, *args: Any, return_dict: Any = True, **options: Any) -> Any:
            out = step(self, *args, return_dict=True, **options)
            estimates.append(out.pred_original_sample.clone())
            return out if return_dict else (out.prev_sample,)

        monkeypatch.setattr(scheduler_class, "step", tell)
    else:
        convert = scheduler_class.convert_model_output

        def keep(self: Any, *args: Any, **options: Any) -> Any:
            estimates.append(convert(self, *args, **options))
            return estimates[-1]

        monkeypatch.setattr(scheduler_class, "convert_model_output", keep)
    return estimates


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [(name, "epsilon") for name in OWN + BY_CONVERSION]
    + [(name, "v_prediction") for name in ("DDIM", "EulerDiscrete", "DPMSolverMultistep")],
)
def test_x0_hat_is_the_schedulers(monkeypatch: pytest.MonkeyPatch, name: Any, prediction_type: Any) -> None:
    pipe = tiny_pipeline(prediction_type=prediction_type)
    prior = tiny_prior(pipe, ("garment",))
    estimates = estimates_of(monkeypatch, name)
    config = SamplingSettings(
        num_inference_steps=4, scheduler=name + "Scheduler", guidance_scale=3.0, batch_size=2, trace=3, look_ahead=0
    )
    traces = [image.trace for image in sample(pipe, prior, REQUESTS, config)]
    assert [len(trace.timesteps) for trace in traces] == [len(estimates) // 2] * 3
    first, second = estimates[: len(estimates) // 2], estimates[len(estimates) // 2 :]
    for trace, calls, place in zip(traces, (first, first, second), (0, 1, 0), strict=True):
        theirs = torch.stack([x0[place] for x0 in calls])
        torch.testing.assert_close(trace.x0_hat, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep"])
def test_x_t_is_what_the_network_saw(name: Any) -> None:
    """In any scheduler's scale the first state is Eq. 8's x_init; the trace leaves the images as they are."""
    pipe = tiny_pipeline()
    prior = tiny_prior(pipe, ("garment",))
    plain = SamplingSettings(
        start="mean",
        zero_mean=False,
        num_inference_steps=4,
        scheduler=name + "Scheduler",
        timestep_spacing="leading",
        guidance_scale=1.0,
        look_ahead=0,
    )
    config = replace(plain, trace=1)
    with_trace, without_trace = ([*sample(pipe, prior, REQUESTS, c)] for c in (config, plain))
    assert [p.trace is not None for p in with_trace] == [True, False, False] and without_trace[0].trace is None
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(with_trace, without_trace, strict=True))
    trace = with_trace[0].trace
    scheduler = with_options(pipe.scheduler, name + "Scheduler", "leading")
    scheduler.set_timesteps(4)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    state = scheduler.add_noise(prior.mean("garment"), noise, scheduler.timesteps[:1])
    torch.testing.assert_close(trace.x_t[0], scheduler.scale_model_input(state, scheduler.timesteps[0])[0])
    assert trace.timesteps == [float(t) for t in scheduler.timesteps]
    assert not pipe.unet._forward_hooks, "the hook is taken off"
