"""The look ahead: x_start as the network proposes it, one evaluation a look (docs/concepts/method.md, section 7)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.core.process import estimate
from onbrand.errors import OnbrandError
from onbrand.models.pipeline import device_of
from onbrand.models.scheduler import latents_for, scales
from onbrand.sampling.noise import generator_for, noise_of
from onbrand.sampling.stochastic import scheduled

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

GUIDANCE = 1.5
"""A look asks with the guidance of sampling, but with no more than this: an estimate at the first timestep that is
guided as sampling often is overshoots in every component (docs/research/results.md)."""

FORMER = {"kind": "start", "offset": "start", "trained": "trained_start"}
"""Argument of `start` as an earlier version had it -> its name now."""


@dataclass(frozen=True)
class Look:
    """How a start looks ahead."""

    times: int
    """Evaluations, >= 1."""
    projection: bool
    """Keep of each estimate what lies in the class's components."""
    zero_mean: bool
    """Take each channel's mean out of the noise, as out of the start's."""
    call: Mapping[str, Any]
    """What the pipeline is called with: prompt, num_inference_steps, guidance_scale, negative_prompt, image ...; where
    no guidance_scale is among it, GUIDANCE."""


def estimate_ahead(
    pipe: DiffusionPipeline,
    prior: Prior | None,
    live: Any,
    x_start: Tensor,
    classes: Sequence[str] | None,
    seeds: Sequence[int],
    look: Look,
) -> Tensor:
    """x_start <- project(x0_hat(sqrt(abar_0) x_start + sqrt(1 - abar_0) eps, prompt)), `look.times` times.

    x_start: (B, C, h, w), float32 on the CPU, and so is what is returned; live: a scheduler already set
    (`scheduler.set_steps`). Each look has noise of its own, by seed and number: the same in any batch, and never the
    noise that sampling starts from.
    """
    call = {**look.call, "guidance_scale": min(look.call.get("guidance_scale", GUIDANCE), GUIDANCE)}
    numbers = iter(range(1, look.times + 1))

    def latents_of(x_start: Tensor) -> Tensor:
        generators = [generator_for(seed, f"look {number}") for number in [next(numbers)] for seed in seeds]
        return latents_for(live, x_start, noise_of(generators, x_start.shape[1:], look.zero_mean))

    def project(x0_hat: Tensor) -> Tensor:
        if not look.projection:
            return x0_hat
        assert prior is not None and classes is not None
        return prior.project(x0_hat, classes)

    last = first_estimate(pipe, live, latents_of(x_start), call, look.times, lambda x0_hat: latents_of(project(x0_hat)))
    return project(last)


@torch.no_grad()
def first_estimate(
    pipe: DiffusionPipeline,
    live: Any,
    latents: Tensor,
    call: Mapping[str, Any],
    times: int = 1,
    renew: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """x0_hat (B, C, h, w) at a pipeline's first timestep, float32 on the CPU: guidance and all else as in `call`.

    live: a scheduler already set; latents: what the pipeline would be given as `latents=`. With `times` the network is
    asked as often at that timestep, in one call of the pipeline, which reads the prompts once: `again` makes new
    latents of each x0_hat but the last, which is returned.
    """
    scale, abar = scales(live)
    sigma, prediction_type = float(live.init_noise_sigma), str(live.config["prediction_type"])
    estimates: list[Tensor] = []
    looking = copy.deepcopy(live)
    set_default = looking.set_timesteps

    def set_timesteps(*args: Any, **options: Any) -> None:
        set_default(*args, **options)
        if hasattr(looking, "set_begin_index"):  # or one that counts its steps looks the timestep up, and finds several
            looking.set_begin_index(0)
        looking.timesteps = looking.timesteps[:1].repeat(times)

    @wraps(looking.step)  # pipelines read off its signature whether it takes eta and a generator
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        x0_hat = estimate(prediction_type, model_output.float(), sample.float() / scale, abar)[0].cpu()
        estimates.append(x0_hat)
        if renew is None or len(estimates) == times:
            return (sample,)
        return ((renew(x0_hat) * sigma).to(sample),)

    looking.set_timesteps, looking.step = set_timesteps, step
    latents = latents.to(device_of(pipe), pipe.unet.dtype)
    with scheduled(pipe, looking), _without_bar(pipe):
        pipe(**call, latents=latents, output_type="latent")
    return estimates[-1]


def check_call(pipe: DiffusionPipeline, call: Mapping[str, Any]) -> None:
    """OnbrandError for an argument that the pipeline does not take, or that a look gives it itself."""
    for former, present in FORMER.items():
        if former in call:
            raise OnbrandError("start", f"{former} is called {present} now; got {former}={call[former]!r}: rename it")
    own = {"prompt", "latents", "num_inference_steps", "output_type", "callback_on_step_end", "self"}
    names = set(inspect.signature(type(pipe).__call__).parameters) - own
    if unknown := sorted(set(call) - names):
        raise OnbrandError(
            "start",
            f"a start takes beside its own arguments those that {type(pipe).__name__} is called with; got "
            f"{', '.join(unknown)}: leave it out",
        )


@contextmanager
def _without_bar(pipe: DiffusionPipeline) -> Iterator[None]:
    """While this holds, the pipeline draws no progress bar: a second one would look like a second generation."""
    own = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**own | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**own)
