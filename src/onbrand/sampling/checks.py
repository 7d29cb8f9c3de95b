"""Is this start what the weights and the prior are for? Refused or warned of before any work is spent."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from onbrand.core.findings import NEAR, no_effect, other_timestep, outside_window, unmatched_noise
from onbrand.data.conditioning import read_conditioning
from onbrand.data.images import open_image
from onbrand.errors import OnbrandError, UnreadableImage, quote
from onbrand.models.controlnet import nets_of
from onbrand.models.pipeline import fingerprint, text_fingerprint
from onbrand.models.scheduler import VANISHING, Schedule, suggest
from onbrand.options.generate import SamplingSettings, Start
from onbrand.sampling.requests import Request, place_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior


MATCHED = ("DDIMScheduler", "EulerAncestralDiscreteScheduler")
"""Samplers whose noise can be matched to the constant gain (`stochastic.match`)."""


def check_prior(pipe: DiffusionPipeline, prior: Prior | None, start: Start, classes: Sequence[str] | None) -> None:
    """OnbrandError unless the prior was fitted with the pipeline's VAE, for start text with its text encoder, and has
    what this start needs."""
    if prior is None:
        if start not in ("noise", "image"):
            raise OnbrandError("start", f"the start {start!r} needs a prior: fit one, or start from noise")
        return
    config = pipe.vae.config
    # a bfloat16 copy of a VAE has lost the digits it could be known by
    vae = None if pipe.vae.dtype == torch.bfloat16 else fingerprint(pipe.vae)
    prior.check(
        vae=vae,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor or 0.0,
        text_encoder=text_fingerprint(pipe) if start == "text" else None,
    )
    missing = sorted(set(classes or ()) - set(prior.text)) if start == "text" else []
    if missing:
        raise OnbrandError(
            "start",
            f"no text regression for {', '.join(map(repr, missing))}: fit with 20 captioned photos a class or more, or "
            "start from the mean",
        )


def check_look(
    start: Start,
    looks: int,
    projection: bool,
    prior: Prior | None,
    classes: Sequence[str] | None,
    trained_start: Mapping[str, Any] | None,
    schedule: Schedule,
) -> None:
    """OnbrandError for a look ahead where it has nothing to go on from, to be projected on, or to repair."""
    if not looks:
        return
    if trained_start is not None:
        raise OnbrandError(
            "start",
            f"look_ahead {looks} is for weights trained as usual; these were trained with the start "
            f"{trained_start['start']}, and what they estimate first is free of the leak already: leave look_ahead out",
        )
    if start == "noise":
        raise OnbrandError(
            "start", f"look_ahead {looks} goes on from x_start; a start from noise has none: start from the mean"
        )
    if schedule.abar < VANISHING:
        raise OnbrandError(
            "start",
            f"look_ahead {looks} has no effect: x_start has weight 0 at the first timestep of {schedule.name} (zero "
            "terminal SNR): leave it out",
        )
    if not projection:
        return
    if prior is None:
        raise OnbrandError(
            "start",
            f"look_ahead {looks} keeps what lies in the components of a prior's class; got no prior: give one, or "
            "set look_ahead_projection off",
        )
    flat = [name for name in dict.fromkeys(classes or ()) if not prior.gaussians[name].k]
    if flat:
        raise OnbrandError(
            "start",
            f"look_ahead {looks} keeps what lies in the components of a class; without components are "
            f"{', '.join(map(repr, flat))}: fit with k of 1 or more, or set look_ahead_projection off",
        )


def check_images(requests: Sequence[Request]) -> None:
    """OnbrandError unless every request has an image that opens, for an image start."""
    missing = [index for index, request in enumerate(requests) if request.image is None]
    if missing:
        number = f"{len(missing)} of {len(requests)} requests have none, {place_of(requests, missing[0])} first"
        raise OnbrandError(
            "request", f"an image start has an image a request; {number}: name it as image in the file of requests"
        )
    opened: set[str] = set()
    for index, file in enumerate(str(request.image) for request in requests):
        try:
            if file not in opened:
                open_image(file)
            opened.add(file)
        except UnreadableImage as error:
            raise OnbrandError(
                "request", f"{place_of(requests, index)}: its image cannot be opened ({error}): give another"
            ) from error


def check_conditioning(pipe: DiffusionPipeline, requests: Sequence[Request], config: SamplingSettings) -> None:
    """OnbrandError unless every request has a control image that opens for each ControlNet; without ControlNets none
    is looked at."""
    nets, scale = len(nets_of(pipe)), config.controlnet_conditioning_scale
    if not nets:
        return
    if not isinstance(scale, float | int) and len(scale) != nets:
        raise OnbrandError(
            "start",
            f"controlnet_conditioning_scale is one number or one for each of {nets} ControlNets; got {len(scale)}",
        )
    for index, request in enumerate(requests):
        if len(request.conditioning) != nets:
            raise OnbrandError(
                "start",
                f"each request has a control image for each ControlNet, here {nets}; {place_of(requests, index)} has "
                f"{len(request.conditioning)}: name them as conditioning in the file of requests",
            )
    for file in dict.fromkeys(file for request in requests for file in request.conditioning):
        read_conditioning(file, (1, 1))


def check_effect(start: Start, schedule: Schedule) -> None:
    """OB005, a warning: x_start has no weight at the first timestep, so that every start is a start from noise."""
    if start != "noise" and schedule.abar < VANISHING:
        warnings.warn(str(no_effect(schedule.first, schedule.abar)), stacklevel=4)


def check_trained_start(
    scheduler: Any,
    schedule: Schedule,
    steps: int,
    start: Start,
    k: int,
    prior: Prior | None,
    trained_start: Mapping[str, Any] | None,
) -> None:
    """Compare a start with the one that the weights were trained with (`checkpoint.KEYS`; None: noise).

    OB003, OnbrandError: the first timestep lies outside the trained window. OB006, a warning: a constant gain starts
    from another timestep. Also warned of: another start, another k, another prior.
    """
    if trained_start is None:
        return
    timestep = trained_start["start_timestep"]
    if start != "noise" and trained_start["gain"] == "window" and schedule.first <= timestep - NEAR:
        raise OnbrandError(
            "start", str(outside_window(schedule.first, timestep, suggest(scheduler, timestep, steps=steps)))
        )
    if start != "noise" and trained_start["gain"] == "constant" and abs(schedule.first - timestep) >= NEAR:
        remedy = suggest(scheduler, timestep, timestep, steps)
        warnings.warn(str(other_timestep(schedule.first, timestep, remedy)), stacklevel=4)
    trained_as, trained_k = trained_start["start"], trained_start.get("k") or 0
    if start != trained_as or (start == "pca" and k != trained_k):
        warnings.warn(
            f"these weights were trained to start from {_say(trained_as, trained_k)}; this start is {_say(start, k)}",
            stacklevel=4,
        )
    if prior is not None and trained_start.get("prior") not in (None, prior.fingerprint):
        warnings.warn("these weights were trained with another prior than this one", stacklevel=4)


def check_sampling_noise(scheduler: Any, exceptions: Sequence[str] = ()) -> None:
    """OB007, a warning: under the constant gain a sampler draws noise that is not matched. exceptions: names of
    those whose noise is."""
    name = type(scheduler).__name__
    drawing = any(part in name for part in ("DDPM", "Ancestral", "SDE", "LCM", "TCD"))
    if name in exceptions or not (drawing or str(scheduler.config.get("algorithm_type", "")).startswith("sde")):
        return
    remedy = f"Take {' (with eta 1) or '.join(MATCHED)}, or a sampler that draws none."
    if name in MATCHED:
        remedy = "Run the pipeline inside onbrand.matched_steps(pipe, latents, seeds=...)."
    warnings.warn(str(unmatched_noise(name, remedy)), stacklevel=3)


def _say(start: str, k: int) -> str:
    return f"{start} (k={k})" if start in ("pca", "image") and k else start


WEIGHTS = re.compile(
    r"\([^()]*:\s*[-+]?\d*\.?\d+\s*\)|\(\([^()]+\)\)|\[\[[^\[\]]+\]\]|<(?:lora|lyco|hypernet):[^<>]*>|\bBREAK\b"
    r"|\([^()]+\)(?:\d*\.\d+|[-+]{1,9}(?![\w-]))|\b\w+(?:\+{2,9}|-{2,9})(?![\w-])|\[[^\[\]|:]*[|:][^\[\]]*\]"
    r"|\{[^{}|]*\|[^{}]*\}|\{\{[^{}]+\}\}|\b__\w[\w/-]*__|\bembedding:\w[\w.-]*"
)
"""What other programs read in a prompt, and no one here: (red:1.4), ((red)), [[red]], <lora:shoes:0.8>; (red)1.4, red++
(InvokeAI), [red:blue:0.5], [red|blue] (A1111), {red|blue}, __colour__ (dynamic prompts), embedding:shoes (ComfyUI)."""


def warn_unread(requests: Sequence[Request], config: SamplingSettings, nets: int) -> None:
    """Warn of what requests say and nothing reads: weights in their words; a start, steps or guidance that is not the
    run's; negative prompts without guidance; control images without a ControlNet. One warning each.

    nets: ControlNets of the model.
    """
    run = {name: getattr(config, name) for name in ("start", "num_inference_steps", "guidance_scale")}
    for name, value in run.items():
        words = {
            index: f"asks for {name} {request.asked[name]}"
            for index, request in enumerate(requests)
            if request.asked.get(name, value) != value
        }
        _warn_of(requests, words, f"all images of a run have {name} {value}: set {name} for all")
    words = {}
    for index, request in enumerate(requests):
        if match := WEIGHTS.search(request.prompt) or WEIGHTS.search(request.negative_prompt):
            words[index] = f"has {quote(match[0], 60)}"
    _warn_of(requests, words, "weights and tags of other programs are drawn as words: take them out (a LoRA is lora)")
    if config.guidance_scale is not None and config.guidance_scale <= 1:
        words = {
            index: f"has the negative prompt {quote(request.negative_prompt, 60)}"
            for index, request in enumerate(requests)
            if request.negative_prompt
        }
        _warn_of(requests, words, f"guidance_scale {config.guidance_scale:g} does not read it: set it above 1")
    if not nets:
        words = {
            index: f"names {request.conditioning[0]}" for index, request in enumerate(requests) if request.conditioning
        }
        _warn_of(requests, words, "a control image is read by a ControlNet, and this model has none: give controlnet")


def _warn_of(requests: Sequence[Request], words: Mapping[int, str], rule: str) -> None:
    """One warning for all requests that it is about (index -> words), which shows the first."""
    if words:
        first = min(words)
        others = f" (and {len(words) - 1} more)" if len(words) > 1 else ""
        warnings.warn(f"{place_of(requests, first)} {words[first]}{others}; {rule}", stacklevel=4)
