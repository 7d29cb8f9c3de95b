"""Is this start what the weights and the prior are for? Refused or warned of before any work is spent."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from onbrand.data.conditioning import read_conditioning
from onbrand.models.controlnet import nets_of
from onbrand.models.pipeline import fingerprint
from onbrand.models.scheduler import NEAR, VANISHING, Schedule, suggest
from onbrand.options.generate import GenerateConfig, Start
from onbrand.sampling.requests import Request

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


MATCHED = ("DDIMScheduler", "EulerAncestralDiscreteScheduler")
"""Samplers whose fresh noise can be matched to the constant gain (`fresh.match`)."""


def check_prior(pipe: StableDiffusionPipeline, prior: Prior | None, kind: Start, classes: Sequence[str] | None) -> None:
    """ValueError unless the prior was fitted with the pipeline's VAE and has what a start of this kind needs."""
    if prior is None:
        if kind not in ("noise", "image"):
            raise ValueError(f"the start {kind!r} needs a prior: fit one, or start from noise")
        return
    config = pipe.vae.config
    # a bfloat16 copy of a VAE has lost the digits it could be known by
    vae = None if pipe.vae.dtype == torch.bfloat16 else fingerprint(pipe.vae)
    prior.check(vae=vae, scaling_factor=config.scaling_factor, shift_factor=config.shift_factor or 0.0)
    missing = sorted(set(classes or ()) - set(prior.text)) if kind == "text" else []
    if missing:
        raise ValueError(
            f"no text regression for {', '.join(missing)}: fit with 20 captioned photos a class or more, or start from "
            "the mean"
        )


def check_residual(kind: Start, residual: bool) -> None:
    """ValueError for a residual without a text start, which alone leaves something open."""
    if residual and kind != "text":
        raise ValueError(f"residual draws what a text start leaves open; got start {kind}: leave it out")


def check_look(
    kind: Start,
    looks: int,
    projected: bool,
    prior: Prior | None,
    classes: Sequence[str] | None,
    offset: Mapping[str, Any] | None,
    schedule: Schedule,
) -> None:
    """ValueError for a look ahead where it has nothing to go on from, to be projected on, or to repair."""
    if not looks:
        if not projected:
            raise ValueError(
                "look_ahead_projection says what a look ahead keeps; got no look: give look_ahead, or omit it"
            )
        return
    if looks < 0:
        raise ValueError(f"look_ahead counts looks, 0 or more; got {looks}")
    if offset is not None:
        raise ValueError(
            f"look_ahead {looks} is for weights trained as usual; these were trained with the start {offset['kind']}, "
            "and what they estimate first is free of the leak already: leave look_ahead out"
        )
    if kind == "noise":
        raise ValueError(f"look_ahead {looks} goes on from x_start; a start from noise has none: start from the mean")
    if schedule.abar < VANISHING:
        raise ValueError(
            f"look_ahead {looks} has no effect: x_start has weight 0 at the first timestep of {schedule.name} (zero "
            "terminal SNR): leave it out"
        )
    if not projected:
        return
    if prior is None:
        raise ValueError(
            f"look_ahead {looks} keeps what lies in the components of a prior's class; got no prior: give one, or "
            "look_ahead_projection false"
        )
    flat = [name for name in dict.fromkeys(classes or ()) if not prior.gaussians[name].k]
    if flat:
        raise ValueError(
            f"look_ahead {looks} keeps what lies in the class's components; {', '.join(flat)} has none: fit with k of "
            "1 or more, or give look_ahead_projection false"
        )


def check_conditioning(pipe: StableDiffusionPipeline, requests: Sequence[Request], config: GenerateConfig) -> None:
    """ValueError unless every request has a control picture that opens for each ControlNet; without ControlNets none
    is looked at, and none can be laid over the picture."""
    nets, scale = len(nets_of(pipe)), config.controlnet_scale
    if not nets:
        if config.overlay or scale != 1.0:
            raise ValueError("overlay and controlnet_scale are for ControlNets; this model has none: omit them")
        return
    if not isinstance(scale, float | int) and len(scale) != nets:
        raise ValueError(f"controlnet_scale is one number or one for each of {nets} ControlNets; got {len(scale)}")
    for index, request in enumerate(requests):
        if len(request.conditioning) != nets:
            raise ValueError(
                f"each request has a control picture for each ControlNet, here {nets}; request {index} has "
                f"{len(request.conditioning)}: name them as conditioning in the file of requests"
            )
    for file in dict.fromkeys(file for request in requests for file in request.conditioning):
        read_conditioning(file, (1, 1))


def check_effect(kind: Start, schedule: Schedule) -> None:
    """OB005, a warning: x_start has no weight at the first timestep, so that every start is a start from noise."""
    if kind != "noise" and schedule.abar < VANISHING:
        warnings.warn(
            f"OB005: no effect: x_start has weight 0 at the first timestep of {schedule.name} (zero terminal SNR)",
            stacklevel=3,
        )


def check_trained(
    scheduler: Any,
    schedule: Schedule,
    steps: int,
    kind: Start,
    k: int,
    prior: Prior | None,
    offset: Mapping[str, Any] | None,
) -> None:
    """Compare a start with the one that offset-trained weights know (`bundle.offset_config`; None: plain weights).

    OB003, ValueError: the first timestep lies outside the trained window. OB006, a warning: a constant gain starts
    from another timestep. Also warned of: another kind of start, another k, another prior.
    """
    if offset is None:
        return
    begins = f"{steps} steps of {schedule.name} start at {schedule.first:g}"
    if kind != "noise" and offset["gain"] == "window" and schedule.first <= offset["first"] - NEAR:
        raise ValueError(
            f"OB003: these weights were trained to start at timestep {offset['first']} or later; {begins}. "
            f"Take {suggest(scheduler, offset['first'], steps=steps)}"
        )
    if kind != "noise" and offset["gain"] == "constant" and abs(schedule.first - offset["start"]) >= NEAR:
        effect = "exaggerates" if schedule.first > offset["start"] else "damps"
        warnings.warn(
            f"OB006: these weights were trained to start at timestep {offset['start']}; {begins}, which {effect} "
            f"what sets a picture apart from x_start. Take "
            f"{suggest(scheduler, offset['start'], offset['start'], steps)}",
            stacklevel=3,
        )
    trained, trained_k = offset["kind"], offset.get("k") or 0
    if kind != trained or (kind == "pca" and k != trained_k):
        warnings.warn(
            f"these weights were trained to start from {_say(trained, trained_k)}; this start is {_say(kind, k)}",
            stacklevel=3,
        )
    if prior is not None and offset.get("prior") not in (None, prior.fingerprint):
        warnings.warn("these weights were trained with another prior than this one", stacklevel=3)


def check_fresh(scheduler: Any, matched: Sequence[str] = ()) -> None:
    """OB007, a warning: under the constant gain a sampler draws noise that is not matched. matched: names of those
    whose noise is."""
    name = type(scheduler).__name__
    drawing = any(part in name for part in ("DDPM", "Ancestral", "SDE", "LCM", "TCD"))
    if name in matched or not (drawing or str(scheduler.config.get("algorithm_type", "")).startswith("sde")):
        return
    remedy = f"take {' (with eta 1) or '.join(MATCHED)}, or a sampler that draws none"
    if name in MATCHED:
        remedy = "run the pipeline inside onbrand.matched_steps(pipe, latents, seeds=...)"
    warnings.warn(
        f"OB007: {name} draws noise at every step, which thins x_start's share under the constant gain: {remedy}",
        stacklevel=3,
    )


def _say(kind: str, k: int) -> str:
    return f"{kind} (k={k})" if kind in ("pca", "image") and k else kind
