"""The exact hand-off (METHOD.md section 5): out of the trained window goes the noise drawn, not the one estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from onbrand.core.offset import handoff
from onbrand.models.pipeline import offset_of
from onbrand.models.scheduler import NEAR, describe, set_steps, suggest
from onbrand.sampling.noise import noise_for

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KNOWN = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers with a step from which x0_hat follows: first order, and without fresh noise."""


class HandOff:
    """A pipeline's `callback_on_step_end`, for weights offset-trained with the window gain.

    After the last inference step inside the trained window the state becomes sqrt(abar') x0_hat + sqrt(1 - abar') eps,
    as the network was trained to meet it below: eps is the seeds' noise, x0_hat follows from the states before and
    after. DPM++ and UniPC forget the steps taken so far after each step inside the window: every one of these, and
    the next, is then first order (DDIM's own step). Leave DDIM's eta at 0; half precision wants few inference steps,
    for solving for x0_hat magnifies rounding, the more the shorter the step. May be used for several runs.
    """

    tensor_inputs = ["latents"]
    """What it is to be given, as diffusers' MultiPipelineCallbacks asks."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        latents: Tensor,
        *,
        seeds: int | Sequence[int],
        num_inference_steps: int = 20,
        zero_mean: bool = True,
        offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
    ) -> None:
        """latents: what the pipeline is given as `latents=`, (B, C, h, w); seeds, zero_mean: what `start` made it from.

        offset: how the weights were offset-trained; "recorded": as the pipeline's folder says.
        ValueError, before any work: see `check`; and latents that do not hold the seeds' noise.
        """
        seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        recorded = offset_of(pipe) if offset == "recorded" else offset
        live = set_steps(pipe.scheduler, num_inference_steps)
        self._inside = check(live, None if isinstance(recorded, str) else recorded)
        self._planned = _run_of(live)
        if len(seeds) != len(latents):
            raise ValueError(f"the hand-off takes a seed for each of {len(latents)} latents; got {len(seeds)} seeds")
        self._noise, self._latents = noise_for(seeds, latents.shape[1:], zero_mean), latents
        # the noise's share of the latents: sqrt(1 - abar), 0 where it is another's
        share = (latents.cpu() * self._noise).flatten(1).sum(1) / self._noise.square().flatten(1).sum(1)
        if float(share.min()) < 0.5 * math.sqrt(1 - describe(live).abar):
            raise ValueError(
                f"latents hold the noise of their seeds; those of seed {seeds[int(share.argmin())]} hold another: "
                "give the seeds that they were started from"
            )

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        """diffusers' callback_on_step_end. ValueError if the pipeline runs other steps than the hand-off is for."""
        scheduler, after = pipe.scheduler, given["latents"]
        if step == 0:
            self._before = (self._latents * scheduler.init_noise_sigma).to(after.device)
            runs = _run_of(scheduler)
            if runs != self._planned or float(timestep) != runs[1][0]:
                raise ValueError(
                    f"the hand-off is for {_say(*self._planned)}, from the first on; the pipeline runs {_say(*runs)}, "
                    f"from {float(timestep):g} on: give both the same scheduler and num_inference_steps"
                )
        if step < self._inside:
            _forget(scheduler)
        if step == self._inside - 1:
            abar, abar_next = _abars(scheduler, step, timestep)
            in_sigmas = type(scheduler).__name__ == "EulerDiscreteScheduler"  # its states are x sqrt(1 + sigma^2)
            scale, scale_next = (abar**-0.5, abar_next**-0.5) if in_sigmas else (1.0, 1.0)
            x, x_next = self._before.float() / scale, after.float() / scale_next
            after = (scale_next * handoff(x, x_next, self._noise, abar, abar_next)).to(after.dtype)
        self._before = after
        return {**given, "latents": after}


def check(live: Any, offset: Mapping[str, Any] | None) -> int:
    """How many steps of a scheduler already set (`schedule.set_steps`) lie inside the window of offset-trained weights.

    ValueError for weights trained otherwise than with the window gain, a scheduler that x0_hat cannot be had from,
    and where no step lies inside.
    """
    if offset is None or offset["gain"] != "window":
        trained = "plainly" if offset is None else "with a constant gain, which carries one noise along by itself"
        raise ValueError(
            "the hand-off is for weights that were offset-trained with the window gain; "
            f"these were trained {trained}: leave the hand-off out"
        )
    unfit = _unfit(live)
    if unfit:
        raise ValueError(
            f"the hand-off finds x0_hat from a deterministic first-order step, as {', '.join(KNOWN)} take; got {unfit}"
        )
    schedule, first = describe(live), offset["first"]
    inside = sum(t > first - NEAR for t in schedule.timesteps)
    if not inside:
        steps = len(schedule.timesteps)
        raise ValueError(
            f"the hand-off follows the last inference step at timestep {first} or later (the trained window); "
            f"{steps} steps of {schedule.name} start at {schedule.first:g}. Take {suggest(live, first, steps=steps)}"
        )
    return inside


def _unfit(scheduler: Any) -> str | None:
    """What the hand-off cannot follow in a scheduler, and what to take instead; None if it can."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in KNOWN:
        return f"{name}: take one of these"
    if name == "DDIMScheduler" and (config["clip_sample"] or config["thresholding"]):
        return f"{name} that clips x0_hat but not the noise: set clip_sample=False and thresholding=False"
    if name == "DPMSolverMultistepScheduler" and config["algorithm_type"].startswith("sde"):
        return f"{name} with algorithm_type={config['algorithm_type']!r}, which draws noise: set 'dpmsolver++'"
    if name == "UniPCMultistepScheduler" and config["solver_p"] is not None:
        return f"{name} with another solver_p: set solver_p=None"
    return None


def _abars(scheduler: Any, step: int, timestep: Any) -> tuple[float, float]:
    """abar before and after the step just taken, as the scheduler itself had them."""
    if type(scheduler).__name__ != "DDIMScheduler":
        before, after = (1 / (1 + float(sigma) ** 2) for sigma in scheduler.sigmas[step : step + 2])
        return before, after
    # not timesteps[step + 1]: these differ where the spacing is uneven
    previous = int(timestep) - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    after = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    return float(scheduler.alphas_cumprod[int(timestep)]), float(after)


def _forget(scheduler: Any) -> None:
    """Clear what DPM++ and UniPC keep of earlier steps: the next one is first order, from the state alone."""
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs = [None] * len(scheduler.model_outputs)
        scheduler.lower_order_nums = 0
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


def _run_of(live: Any) -> tuple[str, list[float]]:
    return type(live).__name__, [float(t) for t in live.timesteps]


def _say(name: str, timesteps: Sequence[float]) -> str:
    return f"{len(timesteps)} steps of {name} ({timesteps[0]:g} to {timesteps[-1]:g})"
