"""Samplers that draw noise, under the constant gain: their noise is matched too, as training's was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from onbrand.models.pipeline import offset_of
from onbrand.models.scheduler import scales, set_steps
from onbrand.sampling.checks import MATCHED, check_fresh
from onbrand.sampling.noise import noise_for

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@contextmanager
def matched_steps(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    *,
    seeds: int | Sequence[int],
    num_inference_steps: int = 20,
    zero_mean: bool = True,
    offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Iterator[None]:
    """While this holds, the noise that the pipeline's sampler draws is matched: for weights of a constant gain.

    These know noise as eps + g (x_start - x0) at every timestep (`matched_noise`). A step that puts fresh noise z in
    the place of a part of it thins x_start's share; here z becomes z + h (x_start - x0_hat), with h such that the
    whole stays matched (docs/method.md, section 9). For DDIM with any eta, and Euler ancestral; deterministic steps
    stay as they are, and so do the steps of other weights.

    latents: what the pipeline is given as `latents=`, (B, C, h, w), made by `start` from these seeds,
    num_inference_steps and zero_mean. offset: how the weights were trained; "recorded": as the pipeline's folder says.
    ValueError for another number of seeds. Warns of a sampler that draws noise in another way (OB007).
    """
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(latents):
        raise ValueError(f"matched steps take a seed for each of {len(latents)} latents; got {len(seeds)} seeds")
    recorded = offset_of(pipe) if offset == "recorded" else offset
    live = set_steps(pipe.scheduler, num_inference_steps)
    if isinstance(recorded, Mapping) and recorded["gain"] == "constant":
        check_fresh(live, MATCHED)
        live = match(live, latents, noise_for(seeds, latents.shape[1:], zero_mean))
    with scheduled(pipe, live):
        yield


def match(live: Any, latents: Tensor, noise: Tensor) -> Any:
    """A copy of a scheduler already set (`set_steps`) whose steps match the noise that they draw.

    latents: `latents=`, noise: the noise in them; both (B, C, h, w). Schedulers other than MATCHED are returned as is.
    """
    if type(live).__name__ not in MATCHED:
        return live
    scale, abar = scales(live)
    sigma = math.sqrt(1 - abar)
    gain = math.sqrt(abar) / sigma
    # g x_start: what the start holds beside its noise
    drift = latents.float() * (float(live.init_noise_sigma) / scale / sigma) - noise.to(latents.device)
    matched = copy.deepcopy(live)
    usual = type(matched).step

    @wraps(usual)  # pipelines read off its signature whether it takes eta and a generator
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **given: Any) -> Any:
        lost = _lost(matched, timestep, float(given.get("eta", args[0] if args else 0.0)))
        out = usual(matched, model_output, timestep, sample, *args, **given)
        after, x0_hat = out[0], out[1]
        pull = drift.to(after.device) - gain * x0_hat.float()
        after = (after.float() + lost * pull).to(after.dtype)
        if isinstance(out, tuple):
            return (after, x0_hat)
        out.prev_sample = after
        return out

    matched.step = step
    return matched


def _lost(scheduler: Any, timestep: Any, eta: float) -> float:
    """By how much fresh noise shortens the part of a step's noise that was there before, in the state's own scale."""
    if type(scheduler).__name__ == "EulerAncestralDiscreteScheduler":
        before, after = (float(sigma) for sigma in scheduler.sigmas[scheduler.step_index :][:2])
        return after - after**2 / before  # sigma_to - sigma_down
    previous = int(timestep) - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    now = float(scheduler.alphas_cumprod[int(timestep)])
    then = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    fresh = eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # DDIM's formula (16)
    return math.sqrt(1 - then) - math.sqrt(max(1 - then - fresh, 0.0))


@contextmanager
def scheduled(pipe: StableDiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """While this holds, the pipeline runs on `scheduler`."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own
