"""Requests -> pictures, batch by batch: one seed a picture, so that picture 17 is the same in any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from onbrand.data.images import to_picture
from onbrand.models.pipeline import decode, factor_of, offset_of, warn_long
from onbrand.models.scheduler import Schedule, describe, set_steps, with_options
from onbrand.options.generate import GenerateConfig, Start
from onbrand.sampling.checks import (
    MATCHED,
    check_conditioning,
    check_effect,
    check_fresh,
    check_look,
    check_prior,
    check_residual,
    check_trained,
)
from onbrand.sampling.handoff import HandOff, check
from onbrand.sampling.look_ahead import Look
from onbrand.sampling.noise import generator_for, noise_for
from onbrand.sampling.requests import Request, conditions_of, images_of, overlaid
from onbrand.sampling.start import begin, classes_of, components, shape_of, usual_look, usual_start
from onbrand.sampling.stochastic import match, scheduled
from onbrand.sampling.trace import Recorder, Trace

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


@dataclass(frozen=True)
class Picture:
    """One finished picture."""

    index: int
    """Its place among the requests."""
    request: Request
    class_name: str | None
    """The kind of picture that it started as; None without a prior."""
    image: Image.Image
    """RGB."""
    latents: Tensor
    """`(C, h, w)` float32 on the CPU: the final x0."""
    batch: tuple[int, int]
    """The batch it was made in: its first index, and how many."""
    trace: Trace | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do: checked, with nothing spent yet."""

    pipe: StableDiffusionPipeline
    prior: Prior | None
    requests: Sequence[Request]
    config: GenerateConfig
    """Its start, zero_mean and look_ahead spelled out."""
    kind: Start
    """What x_start is."""
    scheduler: Any
    """The scheduler to run, by the config's options, set to its steps."""
    schedule: Schedule
    classes: list[str] | None
    """A class a request; None without a prior."""
    k: int
    """Components a pca start draws; 0 for others."""
    offset: Mapping[str, Any] | None
    """How the weights were offset-trained; None: plainly."""

    @property
    def matched(self) -> bool:
        """Whether the noise that the sampler draws is matched (`fresh.match`)."""
        return self.kind != "noise" and self.offset is not None and self.offset["gain"] == "constant"


def plan(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: GenerateConfig = GenerateConfig(),  # noqa: B008  (frozen)
    offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Plan:
    """Check what is asked for against the model and the prior; ValueError and warnings as `start.start` has them.

    offset: how the weights were offset-trained; "recorded": as the pipeline's folder says. Captions over the
    tokenizer's length are warned of here, once.
    """
    if not requests:
        raise ValueError("nothing to make: give at least one request")
    recorded = offset_of(pipe) if offset == "recorded" else offset
    trained = None if isinstance(recorded, str) else recorded
    scheduler = with_options(pipe.scheduler, config.scheduler, config.spacing, config.karras)
    if config.eta and type(scheduler).__name__ != "DDIMScheduler":
        raise ValueError(f"eta is DDIM's; {type(scheduler).__name__} has none: leave it 0")
    live = set_steps(scheduler, config.steps)
    schedule = describe(live)
    prompts = [request.prompt for request in requests]
    classes = classes_of(prior, prompts, [request.class_name for request in requests], len(requests))
    kind = config.start or usual_start(prior, classes, trained)
    k = components(prior, kind, config.k, trained)
    check_residual(kind, config.residual)
    check_prior(pipe, prior, kind, classes)
    if kind == "image":
        missing = [request.image for request in requests if request.image is None or not Path(request.image).is_file()]
        if missing:
            raise ValueError(f"an image start needs a picture a request; {len(missing)} lack one, as {missing[0]}")
    check_conditioning(pipe, requests, config)
    check_effect(kind, schedule)
    check_trained(scheduler, schedule, config.steps, kind, k, prior, trained)
    if config.handoff:
        check(live, trained)
    warn_long(pipe, prompts)
    even = kind != "noise" if config.zero_mean is None else config.zero_mean
    looks = usual_look(kind, prior, classes, trained, schedule) if config.look_ahead is None else config.look_ahead
    check_look(kind, looks, config.look_ahead_projection, prior, classes, trained, schedule)
    told = replace(config, start=kind, zero_mean=even, look_ahead=looks)
    made = Plan(pipe, prior, requests, told, kind, live, schedule, classes, k, trained)
    if made.matched:
        check_fresh(live, MATCHED)
    return made


def sample(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: GenerateConfig = GenerateConfig(),  # noqa: B008  (frozen)
    offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Iterator[Picture]:
    """Make the pictures, in order, each as its batch is done. Checked (`plan`) at the call, not at the first one."""
    return run(plan(pipe, prior, requests, config, offset))


def run(plan: Plan, done: Container[int] = ()) -> Iterator[Picture]:
    """The pictures of a plan but those whose index is in `done`; batches are what they would be without any done."""
    size = plan.config.batch
    for first in range(0, len(plan.requests), size):
        batch = range(first, min(first + size, len(plan.requests)))
        wanted = [index for index in batch if index not in done]
        if wanted:
            finished = _batch(plan, batch)
            yield from (finished[index - first] for index in wanted)


@torch.no_grad()
def _batch(plan: Plan, batch: range) -> list[Picture]:
    pipe, config = plan.pipe, plan.config
    requests = [plan.requests[index] for index in batch]
    prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
    classes = None if plan.classes is None else [plan.classes[index] for index in batch]
    images = images_of(requests, plan.prior) if plan.kind == "image" else None
    call = {
        "prompt": prompts,
        "negative_prompt": [request.negative_prompt for request in requests] if config.guidance > 1 else None,
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance,
        **conditions_of(pipe, requests, config, _size(plan, images)),
    }
    even = bool(config.zero_mean)
    latents = begin(
        pipe,
        plan.prior,
        plan.scheduler,
        prompts,
        classes,
        seeds,
        plan.kind,
        plan.k,
        images,
        config.literal,
        config.residual,
        even,
        Look(config.look_ahead, config.look_ahead_projection, even, call) if config.look_ahead else None,
    )
    # the steps' randomness has generators of its own: the seed's first draw is the start's noise
    generators = [generator_for(seed, "steps") for seed in seeds]
    traced = batch[0] < config.trace
    recorder = Recorder(latents * plan.schedule.init_noise_sigma, plan.schedule.prediction_type, config.guidance)
    scheduler = copy.deepcopy(plan.scheduler)
    if plan.matched:
        scheduler = match(scheduler, latents, noise_for(seeds, latents.shape[1:], even))
    with scheduled(pipe, scheduler):
        if hasattr(pipe.scheduler, "noise_sampler_seed"):
            pipe.scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]
        callbacks: list[Callable[..., dict[str, Any]]] = []
        if config.handoff:
            hand = HandOff(pipe, latents, seeds=seeds, num_inference_steps=config.steps, zero_mean=even,
                           offset=plan.offset)  # fmt: skip
            callbacks.append(hand)
        if traced:  # last: it is to see what the network goes on from
            callbacks.append(recorder)
        with recorder.attached(pipe):
            x0 = pipe(
                **call,
                latents=latents,
                eta=config.eta,
                generator=generators,
                output_type="latent",
                callback_on_step_end=_in_turn(callbacks) if callbacks else None,
            ).images
    if not bool(torch.isfinite(x0).all()):
        raise ValueError(f"the network overflows in {pipe.unet.dtype}: load the model with dtype='float32'")
    pictures = decode(pipe, x0)
    if config.overlay:
        pictures = overlaid(pictures, requests)
    traces = recorder.traces() if traced else [None] * len(batch)
    return [
        Picture(
            index=index,
            request=requests[place],
            class_name=None if classes is None else classes[place],
            image=to_picture(pictures[place]),
            latents=x0[place].float().cpu(),
            batch=(batch[0], len(batch)),
            trace=traces[place] if index < config.trace else None,
        )
        for place, index in enumerate(batch)
    ]


def _size(plan: Plan, images: Tensor | None) -> tuple[int, int]:
    """(H, W) of the pictures that a plan makes: its images', its prior's, or the model's own."""
    if images is not None:
        return images.shape[2], images.shape[3]
    if plan.prior is not None:
        return plan.prior.provenance.resolution
    _, height, width = shape_of(plan.pipe)
    return height * factor_of(plan.pipe), width * factor_of(plan.pipe)


def _in_turn(callbacks: Sequence[Callable[..., dict[str, Any]]]) -> Callable[..., dict[str, Any]]:
    """One callback_on_step_end of several: each is given what those before it made."""

    def call(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        for callback in callbacks:
            given = {**given, **callback(pipe, step, timestep, given)}
        return given

    return call
