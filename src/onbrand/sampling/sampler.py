"""Requests -> images, batch by batch: one seed an image, so that image 17 is the same in any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from onbrand.data.images import to_image
from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of
from onbrand.models.pipeline import decode, factor_of, warn_long
from onbrand.models.pipeline import overflow as overflow_of
from onbrand.models.scheduler import with_options
from onbrand.models.tokens import beginning
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.checks import MATCHED, check_conditioning, check_images, check_sampling_noise, warn_unread
from onbrand.sampling.handoff import HandOff, steps_in_window
from onbrand.sampling.noise import generator_for, noise_for
from onbrand.sampling.requests import Request, conditions_of, images_of, lay_over, place_of
from onbrand.sampling.start import ResolvedStart, begin, classes_of, resolve_start, shape_of
from onbrand.sampling.stochastic import match, scheduled
from onbrand.sampling.trace import Recorder, Trace

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


HOPELESS = 8
"""After so many images of which none is finite the model is at fault, and no more are tried."""


@dataclass(frozen=True)
class GeneratedImage:
    """One finished image."""

    index: int
    """Its place among the requests."""
    request: Request
    class_name: str | None
    """The class of image that it started as; None without a prior."""
    image: Image.Image
    """RGB."""
    latents: Tensor
    """`(C, h, w)` float32 on the CPU: the final x0."""
    batch: tuple[int, int]
    """The batch it was made in: its first index, and how many."""
    finite: bool = True
    """Whether its numbers are: where they are not, image and latents are of no use."""
    trace: Trace | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do: checked, with nothing spent yet."""

    pipe: StableDiffusionPipeline
    prior: Prior | None
    requests: Sequence[Request]
    config: SamplingSettings
    """Its start, zero_mean and look_ahead spelled out."""
    start: ResolvedStart
    classes: list[str] | None
    """A class a request; None without a prior."""


def plan(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: SamplingSettings = SamplingSettings(),  # noqa: B008  (frozen)
    trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Plan:
    """Check what is asked for against the model and the prior; OnbrandError and warnings as `start.start` has them.

    trained_start: the start that the weights were trained with; "recorded": as the pipeline's folder says. Texts over
    the tokenizer's length, and what requests say that nothing reads, are warned of here, once.
    """
    if not requests:
        raise OnbrandError("request", "nothing to make: give at least one request")
    scheduler = with_options(pipe.scheduler, config.scheduler, config.timestep_spacing, config.use_karras_sigmas)
    prompts = [request.prompt for request in requests]
    places = [place_of(requests, index) for index in range(len(requests))]
    classes = classes_of(prior, prompts, [request.class_name for request in requests], len(requests), places)
    start = resolve_start(pipe, prior, scheduler, classes, config, trained_start)
    if start.start == "image":
        check_images(requests)
    check_conditioning(pipe, requests, config)
    if config.handoff:
        steps_in_window(start.scheduler, start.trained_start)
    negative = [request.negative_prompt for request in requests] if config.guidance_scale > 1 else []
    warn_long(pipe, list(dict.fromkeys([*prompts, *filter(None, negative)])))
    if start.matched:
        check_sampling_noise(start.scheduler, MATCHED)
    values = {
        field.name: getattr(config, field.name) for field in fields(SamplingSettings)
    }  # and no more of a subclass
    values |= {"start": start.start, "zero_mean": start.zero_mean, "look_ahead": start.look_ahead}
    settings = SamplingSettings(**values)
    warn_unread(requests, settings, _size(pipe, prior, None), len(nets_of(pipe)))
    return Plan(pipe, prior, requests, settings, start, classes)


def sample(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    requests: Sequence[Request],
    config: SamplingSettings = SamplingSettings(),  # noqa: B008  (frozen)
    trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
) -> Iterator[GeneratedImage]:
    """Make the images, in order, each as its batch is done. Checked (`plan`) at the call, not at the first one.

    Raises OnbrandError at an image whose numbers are not finite."""
    work = plan(pipe, prior, requests, config, trained_start)
    return (usable(work, image) for image in run(work))


def usable(plan: Plan, image: GeneratedImage) -> GeneratedImage:
    """The image; OnbrandError if its numbers are not finite."""
    if not image.finite:
        where = f"{place_of(plan.requests, image.index)} (seed {image.request.seed})"
        raise OnbrandError("image", f"image {image.index} of {where} could not be made: {overflow(plan)}")
    return image


def overflow(plan: Plan) -> str:
    """Why an image of a plan is none, and what to do."""
    scale = plan.config.guidance_scale
    reason = overflow_of("model", plan.pipe.unet.dtype)
    return f"{reason}, or a smaller guidance_scale than {scale:g}" if scale > 1 else reason


def run(plan: Plan, done: Container[int] = ()) -> Iterator[GeneratedImage]:
    """The images of a plan but those whose index is in `done`; batches are what they would be without any done.

    One whose numbers are not finite says so (`finite`), and the others go on. OnbrandError if none of the first
    HOPELESS is.
    """
    size = plan.config.batch_size
    broken: list[int] | None = []  # None: one was finite
    for first in range(0, len(plan.requests), size):
        batch = range(first, min(first + size, len(plan.requests)))
        missing = [index for index in batch if index not in done]
        if missing:
            images = _batch(plan, batch)
            yield from (images[index - first] for index in missing)
            if broken is not None:
                broken = None if any(image.finite for image in images) else [*broken, *missing]
            if broken is not None and len(broken) >= HOPELESS:
                where = f"{place_of(plan.requests, broken[0])} first (seed {plan.requests[broken[0]].seed})"
                raise OnbrandError(
                    "image", f"none of the first {len(broken)} images could be made, {where}: {overflow(plan)}"
                )


@torch.no_grad()
def _batch(plan: Plan, batch: range) -> list[GeneratedImage]:
    pipe, config = plan.pipe, plan.config
    requests = [plan.requests[index] for index in batch]
    prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
    classes = None if plan.classes is None else [plan.classes[index] for index in batch]
    start_images = images_of(requests, plan.prior) if plan.start.start == "image" else None
    length, guided = pipe.tokenizer.model_max_length, config.guidance_scale > 1
    call = {
        # no more of each than counts: the pipeline would tokenise a book to its end
        "prompt": [beginning(text, length) for text in prompts],
        "negative_prompt": [beginning(one.negative_prompt, length) for one in requests] if guided else None,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        **conditions_of(pipe, requests, config, _size(pipe, plan.prior, start_images)),
    }
    start = plan.start
    latents = begin(pipe, plan.prior, start, prompts, classes, seeds, start_images, start.look(call))
    # the steps' randomness has generators of its own: the seed's first draw is the start's noise
    generators = [generator_for(seed, "steps") for seed in seeds]
    tracing = batch[0] < config.trace
    schedule = start.schedule
    recorder = Recorder(latents * schedule.init_noise_sigma, schedule.prediction_type, config.guidance_scale)
    scheduler = copy.deepcopy(start.scheduler)
    if start.matched:
        scheduler = match(scheduler, latents, noise_for(seeds, latents.shape[1:], start.zero_mean))
    with scheduled(pipe, scheduler):
        if hasattr(pipe.scheduler, "noise_sampler_seed"):
            pipe.scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]
        callbacks: list[Callable[..., dict[str, Any]]] = []
        if config.handoff:
            hand = HandOff(
                pipe,
                latents,
                seeds=seeds,
                num_inference_steps=config.num_inference_steps,
                zero_mean=start.zero_mean,
                trained_start=start.trained_start,
            )
            callbacks.append(hand)
        if tracing:  # last: it is to see what the network goes on from
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
    images = decode(pipe, x0)
    finite = x0.isfinite().flatten(1).all(1).cpu() & images.isfinite().flatten(1).all(1).cpu()
    if config.overlay:
        images = lay_over(images, requests)
    traces = recorder.traces() if tracing else [None] * len(batch)
    return [
        GeneratedImage(
            index=index,
            request=requests[place],
            class_name=None if classes is None else classes[place],
            image=to_image(images[place].nan_to_num()),
            latents=x0[place].float().cpu(),
            batch=(batch[0], len(batch)),
            finite=bool(finite[place]),
            trace=traces[place] if index < config.trace else None,
        )
        for place, index in enumerate(batch)
    ]


def _size(pipe: StableDiffusionPipeline, prior: Prior | None, images: Tensor | None) -> tuple[int, int]:
    """(H, W) of the images that a run makes: its images', its prior's, or the model's own."""
    if images is not None:
        return images.shape[2], images.shape[3]
    if prior is not None:
        return prior.provenance.resolution
    _, height, width = shape_of(pipe)
    return height * factor_of(pipe), width * factor_of(pipe)


def _in_turn(callbacks: Sequence[Callable[..., dict[str, Any]]]) -> Callable[..., dict[str, Any]]:
    """One callback_on_step_end of several: each is given what those before it made."""

    def call(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for callback in callbacks:
            tensors = {**tensors, **callback(pipe, step, timestep, tensors)}
        return tensors

    return call
