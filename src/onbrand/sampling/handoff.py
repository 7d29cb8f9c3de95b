"""The exact hand-off: out of the trained window goes the noise drawn, not the one estimated.

docs/concepts/method.md, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from onbrand.core.findings import NEAR
from onbrand.core.offset import handoff
from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import record_of
from onbrand.models.scheduler import schedule_of, set_steps, suggest
from onbrand.sampling.noise import noise_for, seeds_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers with a step from which x0_hat follows: first order, and without sampling noise."""


class HandOff:
    """A pipeline's `callback_on_step_end`, for weights trained with a start and the window gain.

    After the last inference step inside the trained window the state becomes sqrt(abar') x0_hat + sqrt(1 - abar') eps,
    as the network was trained to meet it below. eps is the seeds' noise; x0_hat follows from the states before and
    after. DPM++ and UniPC forget the steps taken so far after each step inside the window: every one of these, and
    the next, is then first order (DDIM's own step). Leave DDIM's eta at 0. Half precision wants few inference steps:
    solving for x0_hat magnifies rounding, the more the shorter the step. One object serves several runs. Source:
    docs/concepts/method.md, section 5.

    Args:
        pipe: the pipeline that will run
        latents: what the pipeline is given as `latents=`, `(B, C, h, w)`
        seeds: those that `start` made the latents from
        num_inference_steps: of the run
        zero_mean: as `start` was given it
        trained_start: the start that the weights were trained with; "recorded": as the pipeline's folder says

    Raises:
        OnbrandError: before any work, if weights or scheduler are not for a hand-off (`steps_in_window`), or if the
            latents do not hold the seeds' noise.
    """

    tensor_inputs = ["latents"]
    """What it is to be given, as diffusers' MultiPipelineCallbacks asks."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        latents: Tensor,
        *,
        seeds: int | Sequence[int],
        num_inference_steps: int = 20,
        zero_mean: bool = True,
        trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
    ) -> None:
        seeds = seeds_of(seeds)
        live = set_steps(pipe.scheduler, num_inference_steps)
        self._inside = steps_in_window(live, record_of(pipe, trained_start))
        self._plan = _run_of(live)
        if len(seeds) != len(latents):
            raise OnbrandError(
                "handoff",
                f"the hand-off takes one seed for each of its latents; got {len(seeds)} for {len(latents)} latents: "
                "give those that they were started from",
            )
        self._noise, self._latents = noise_for(seeds, latents.shape[1:], zero_mean), latents
        # the noise's share of the latents: sqrt(1 - abar), 0 where it is another's
        share = (latents.cpu() * self._noise).flatten(1).sum(1) / self._noise.square().flatten(1).sum(1)
        if float(share.min()) < 0.5 * math.sqrt(1 - schedule_of(live).abar):
            raise OnbrandError(
                "handoff",
                f"latents hold the noise of their seeds; those of seed {seeds[int(share.argmin())]} hold another: "
                "give the seeds that they were started from",
            )

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Diffusers' callback_on_step_end. OnbrandError if the pipeline runs other steps than the hand-off is for."""
        scheduler, after = pipe.scheduler, tensors["latents"]
        if step == 0:
            self._before = (self._latents * scheduler.init_noise_sigma).to(after.device)
            runs = _run_of(scheduler)
            if runs != self._plan or float(timestep) != runs[1][0]:
                raise OnbrandError(
                    "handoff",
                    f"the hand-off is for {_say(*self._plan)}, from the first on; the pipeline runs {_say(*runs)}, "
                    f"from {float(timestep):g} on: give both the same scheduler and num_inference_steps",
                )
        if step < self._inside:  # x0_hat follows from one first-order step alone, and nothing below may lean on these
            _forget(scheduler)
        if step == self._inside - 1:
            abar, abar_next = _abars(scheduler, step, timestep)
            # the hand-off is for variance-preserving states; Euler's are these times sqrt(1 + sigma^2) = abar^-1/2
            in_sigmas = type(scheduler).__name__ == "EulerDiscreteScheduler"
            scale, scale_next = (abar**-0.5, abar_next**-0.5) if in_sigmas else (1.0, 1.0)
            x, x_next = self._before.float() / scale, after.float() / scale_next
            after = (scale_next * handoff(x, x_next, self._noise, abar, abar_next)).to(after.dtype)
        self._before = after
        return {**tensors, "latents": after}


def steps_in_window(live: Any, trained_start: Mapping[str, Any] | None) -> int:
    """How many steps of a scheduler already set (`scheduler.set_steps`) lie inside the weights' trained window.

    Raises:
        OnbrandError: weights trained otherwise than with the window gain, a scheduler that x0_hat cannot be had from,
            or no step inside.
    """
    if trained_start is None or trained_start["gain"] != "window":
        how = "plainly" if trained_start is None else "with a constant gain, which carries one noise along by itself"
        raise OnbrandError(
            "handoff",
            "the hand-off is for weights that were trained with a start and the window gain; "
            f"these were trained {how}: leave the hand-off out",
        )
    unfit = _unfit(live)
    if unfit:
        raise OnbrandError(
            "handoff",
            f"the hand-off finds x0_hat from a deterministic first-order step, as {', '.join(SCHEDULERS)} take; "
            f"got {unfit}",
        )
    schedule, first = schedule_of(live), int(trained_start["start_timestep"])
    inside = sum(t > first - NEAR for t in schedule.timesteps)
    if not inside:
        steps = len(schedule.timesteps)
        raise OnbrandError(
            "handoff",
            f"the hand-off follows the last inference step at timestep {first} or later (the trained window); "
            f"{steps} steps of {schedule.name} start at {schedule.first:g}. Take {suggest(live, first, steps=steps)}",
        )
    return inside


def _unfit(scheduler: Any) -> str | None:
    """What the hand-off cannot follow in a scheduler, and what to take instead; None if it can."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS:
        return f"{name}: take one of these"
    if name == "DDIMScheduler" and (config["clip_sample"] or config["thresholding"]):
        return (
            f"{name} that clips x0_hat but not the noise: set clip_sample=False and thresholding=False, or take another"
        )
    if name == "DPMSolverMultistepScheduler" and config["algorithm_type"].startswith("sde"):
        drawing = config["algorithm_type"]
        return f"{name} with algorithm_type={drawing!r}, which draws noise: set 'dpmsolver++', or take another"
    if name == "UniPCMultistepScheduler" and config["solver_p"] is not None:
        return f"{name} with another solver_p: set solver_p=None, or take another"
    return None


def _abars(scheduler: Any, step: int, timestep: Any) -> tuple[float, float]:
    """Abar before and after the step just taken, as the scheduler itself had them."""
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
