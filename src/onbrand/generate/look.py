"""The look ahead: x_start as the network itself proposes it, one evaluation a look (docs/method.md, section 7)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.generate.fresh import scheduled
from onbrand.generate.noise import generator_for, noise_of
from onbrand.generate.trace import Recorder
from onbrand.models.codec import device_of
from onbrand.models.schedule import latents_for

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior

GUIDANCE = 1.5
"""A look asks with the guidance of sampling, but with no more than this: an estimate at the first timestep that is
guided as sampling often is overshoots in every component (docs/results-look.md)."""


@dataclass(frozen=True)
class Look:
    """How a start looks ahead."""

    times: int
    """Evaluations, >= 1."""
    projected: bool
    """Keep of each estimate what lies in the class's components."""
    zero_mean: bool
    """Take each channel's mean out of the noise, as out of the start's."""
    call: Mapping[str, Any]
    """What the pipeline is called with: prompt, num_inference_steps, guidance_scale, negative_prompt, image ...; where
    no guidance_scale is told, GUIDANCE."""


def estimate_ahead(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    live: Any,
    x_start: Tensor,
    classes: Sequence[str] | None,
    seeds: Sequence[int],
    look: Look,
) -> Tensor:
    """x_start <- project(x0_hat(sqrt(abar_0) x_start + sqrt(1 - abar_0) eps, prompt)), `look.times` times.

    x_start: (B, C, h, w), float32 on the CPU, and so is what is returned; live: a scheduler already set
    (`schedule.set_steps`). Each look has noise of its own, by seed and number: the same in any batch, and never the
    noise that sampling starts from.
    """
    call = {**look.call, "guidance_scale": min(look.call.get("guidance_scale", GUIDANCE), GUIDANCE)}
    for number in range(1, look.times + 1):
        generators = [generator_for(seed, f"look {number}") for seed in seeds]
        noise = noise_of(generators, x_start.shape[1:], look.zero_mean)
        x_start = first_estimate(pipe, live, latents_for(live, x_start, noise), call)
        if look.projected:
            assert prior is not None and classes is not None
            x_start = prior.project(x_start, classes)
    return x_start


def first_estimate(pipe: StableDiffusionPipeline, live: Any, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
    """x0_hat (B, C, h, w) of a pipeline's first step, float32 on the CPU: guidance_scale and all else as in `call`.

    live: a scheduler already set; latents: what the pipeline would be given as `latents=`. Only the first step is run.
    """
    latents = latents.to(device_of(pipe), pipe.unet.dtype)
    state, kind = latents * float(live.init_noise_sigma), str(live.config["prediction_type"])
    recorder = Recorder(state, kind, float(call["guidance_scale"]))

    def stop(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True  # diffusers' own way to leave the other steps out
        return recorder(pipe, step, timestep, given)

    # a sampler that draws noise in this step, which nobody looks at, takes it from here
    unseen = [torch.Generator().manual_seed(0) for _ in latents]
    with scheduled(pipe, copy.deepcopy(live)), recorder.attached(pipe), _without_bar(pipe), torch.no_grad():
        pipe(**{"generator": unseen} | dict(call), latents=latents, output_type="latent", callback_on_step_end=stop)
    x0_hat = torch.stack([trace.x0_hat[0] for trace in recorder.traces()])
    if not bool(torch.isfinite(x0_hat).all()):
        raise ValueError(f"the network overflows in {pipe.unet.dtype}: load the model with dtype='float32'")
    return x0_hat


def check_call(pipe: StableDiffusionPipeline, call: Mapping[str, Any]) -> None:
    """ValueError for an argument that the pipeline does not take, or that a look gives it itself."""
    own = {"prompt", "latents", "num_inference_steps", "output_type", "callback_on_step_end", "self"}
    known = set(inspect.signature(type(pipe).__call__).parameters) - own
    if unknown := sorted(set(call) - known):
        raise ValueError(
            f"a start takes beside its own arguments those that {type(pipe).__name__} is called with; got "
            f"{', '.join(unknown)}: leave it out"
        )


@contextmanager
def _without_bar(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """While this holds, the pipeline draws no progress bar: one of 20 steps that ends after the first looks broken."""
    own = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**own | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**own)
