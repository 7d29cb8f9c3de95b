"""Samplers that draw noise, under the constant gain: their noise is matched too, as training's was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import record_of
from onbrand.models.scheduler import scales, set_steps
from onbrand.sampling.checks import MATCHED, check_sampling_noise
from onbrand.sampling.noise import noise_for, seeds_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@contextmanager
def matched_steps(
    pipe: DiffusionPipeline,
    latents: Tensor,
    *,
    seeds: int | Sequence[int],
    num_inference_steps: int = 20,
    zero_mean: bool = True,
    trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Iterator[None]:
    """While this holds, the noise that the pipeline's sampler draws is matched: for weights of a constant gain.

    These know noise as eps + g (x_start - x0) at every timestep (`matched_noise`). A step that puts sampling noise z in
    the place of a part of it thins x_start's part. Here z becomes z + h (x_start - x0_hat), with h such that the whole
    stays matched. It is for DDIM with any eta, and Euler ancestral; deterministic steps stay as they are, and so do the
    steps of other weights. A sampler that draws noise in another way is warned of (OB007). Source:
    docs/concepts/method.md, section 9.

    Args:
        pipe: the pipeline that will run
        latents: what the pipeline is given as `latents=`, `(B, C, h, w)`, made by `start`
        seeds: those that `start` was given
        num_inference_steps: those that `start` was given
        zero_mean: as `start` was given it
        trained_start: the start that the weights were trained with; "recorded": as the pipeline's folder says

    Raises:
        OnbrandError: another number of seeds than latents.
    """
    seeds = seeds_of(seeds)
    if len(seeds) != len(latents):
        raise OnbrandError(
            "start",
            f"matched steps take one seed for each of their latents; got {len(seeds)} for {len(latents)} latents: give "
            "those that they were started from",
        )
    record = record_of(pipe, trained_start)
    live = set_steps(pipe.scheduler, num_inference_steps)
    if record is not None and record["gain"] == "constant":
        check_sampling_noise(live, MATCHED)
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
    copied = copy.deepcopy(live)
    default_step = type(copied).step

    @wraps(default_step)  # pipelines read off its signature whether it takes eta and a generator
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        loss = _loss(copied, timestep, float(options.get("eta", args[0] if args else 0.0)))
        out = default_step(copied, model_output, timestep, sample, *args, **options)
        after, x0_hat = out[0], out[1]
        pull = drift.to(after.device) - gain * x0_hat.float()
        after = (after.float() + loss * pull).to(after.dtype)
        if isinstance(out, tuple):
            return (after, x0_hat)
        out.prev_sample = after
        return out

    copied.step = step
    return copied


def _loss(scheduler: Any, timestep: Any, eta: float) -> float:
    """How much shorter sampling noise makes the part of the noise that was there before, in the state's own scale."""
    if type(scheduler).__name__ == "EulerAncestralDiscreteScheduler":
        before, after = (float(sigma) for sigma in scheduler.sigmas[scheduler.step_index :][:2])
        return after - after**2 / before  # sigma_to - sigma_down
    previous = int(timestep) - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    now = float(scheduler.alphas_cumprod[int(timestep)])
    then = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # DDIM's formula (16)
    return math.sqrt(1 - then) - math.sqrt(max(1 - then - variance, 0.0))


@contextmanager
def scheduled(pipe: DiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """While this holds, the pipeline runs on `scheduler`."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own
