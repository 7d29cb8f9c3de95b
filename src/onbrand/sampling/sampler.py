"""Requests -> images, batch by batch: one seed an image, so that image 17 is the same in any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from onbrand.data.images import to_image
from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of
from onbrand.models.families import factor_of, family_of
from onbrand.models.pipeline import decode, warn_long
from onbrand.models.pipeline import overflow as overflow_of
from onbrand.models.scheduler import with_options
from onbrand.options.generate import SamplingSettings, Start
from onbrand.sampling.checks import MATCHED, check_conditioning, check_images, check_sampling_noise, warn_unread
from onbrand.sampling.draws import Draw, Gate, draw
from onbrand.sampling.handoff import HandOff, steps_in_window
from onbrand.sampling.noise import generator_for, noise_for
from onbrand.sampling.requests import Request, conditions_of, images_of, lay_over, place_of
from onbrand.sampling.start import ResolvedStart, begin, classes_of, resolve_start, size_of
from onbrand.sampling.stochastic import match, scheduled
from onbrand.sampling.trace import Recorder, Trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

Size = tuple[int, int]
HOPELESS = 8
"""After so many images of which none is finite the model is at fault, and no more are tried."""


@dataclass(frozen=True)
class GeneratedImage:
    """One finished image."""

    index: int
    """Its place among the requests."""
    request: Request
    """What is asked for; its seed is the one that the image was drawn from."""
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
    draws: tuple[Draw, ...] = ()
    """All its draws, with a gate."""


@dataclass(frozen=True)
class Plan:
    """What a run will do: checked, with nothing spent yet."""

    pipe: DiffusionPipeline
    prior: Prior | None
    requests: Sequence[Request]
    config: SamplingSettings
    """Its start, zero_mean, look_ahead and guidance_scale spelled out."""
    start: ResolvedStart
    classes: list[str] | None
    """A class a request; None without a prior."""
    sizes: Sequence[Size | None]
    """(H, W) of each image; None: that of the image it starts from."""

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance."""
        assert self.config.guidance_scale is not None
        return self.config.guidance_scale


def plan(
    pipe: DiffusionPipeline,
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
    sizes = sizes_of(pipe, prior, requests, classes, config.start)
    start = resolve_start(pipe, prior, scheduler, classes, config, trained_start, sizes=sizes)
    if start.start == "image":
        check_images(requests)
    check_conditioning(pipe, requests, config)
    if config.handoff:
        steps_in_window(start.scheduler, start.trained_start)
    guidance = family_of(pipe).guidance if config.guidance_scale is None else config.guidance_scale
    negative = [request.negative_prompt for request in requests] if guidance > 1 else []
    warn_long(pipe, list(dict.fromkeys([*prompts, *filter(None, negative)])))
    if start.matched:
        check_sampling_noise(start.scheduler, MATCHED)
    values = {
        field.name: getattr(config, field.name) for field in fields(SamplingSettings)
    }  # and no more of a subclass
    values |= {"start": start.start, "zero_mean": start.zero_mean, "look_ahead": start.look_ahead}
    values |= {"guidance_scale": guidance}
    settings = SamplingSettings(**values)
    warn_unread(requests, settings, len(nets_of(pipe)))
    return Plan(pipe, prior, requests, settings, start, classes, sizes)


def sizes_of(
    pipe: DiffusionPipeline, prior: Prior | None, requests: Sequence[Request], classes: list[str] | None,
    start: Start | None,
) -> list[Size | None]:  # fmt: skip
    """(H, W) of each request's image: as it asks; else that of the fullest bucket that has its class, or the model's
    own; None: that of the image it starts from, without a prior.

    OnbrandError for a size that the brand was not fitted at, or, without a prior, that the model cannot make.
    """
    factor, sizes = max(8, factor_of(pipe)), []
    for index, request in enumerate(requests):
        name = None if classes is None else classes[index]
        home = next((one for one in prior.all if name in one.classes), prior) if prior else None
        own = size_of(pipe, home, None)
        size = (request.height or own[0], request.width or own[1])
        is_asked = request.height is not None or request.width is not None
        try:
            if is_asked and (prior is None or start == "noise") and (size[0] % factor or size[1] % factor):
                raise OnbrandError(
                    "request", f"height and width are multiples of {factor}; got {size[0]} x {size[1]}: round them"
                )
            if prior is not None and name is not None and start != "noise":
                prior.at(size).check_k(name, 0)
        except OnbrandError as error:
            raise OnbrandError(error.code, f"{place_of(requests, index)}: {error}") from error
        sizes.append(size if is_asked or prior is not None or start != "image" else None)
    return sizes


def sample(
    pipe: DiffusionPipeline,
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
    scale = plan.guidance_scale
    reason = overflow_of("model", plan.pipe.unet.dtype)
    return f"{reason}, or a smaller guidance_scale than {scale:g}" if scale > 1 else reason


def run(
    plan: Plan,
    done: Container[int] = (),
    own: Callable[[list[range]], Iterable[range]] = iter,
    gate: Gate | None = None,
) -> Iterator[GeneratedImage]:
    """The images of a plan but those whose index is in `done`; batches are what they would be without any done.

    own: gives those of the batches that this process makes.

    With a gate those that fail are drawn again. One whose numbers are not finite says so (`finite`), and the others go
    on. OnbrandError if none of the first HOPELESS is.
    """
    broken: list[int] | None = []  # None: one was finite
    batches = [batch for batch in _batches(plan) if any(index not in done for index in batch)]
    for batch in own(batches):
        missing = [index for index in batch if index not in done]
        make, requests = partial(_batch, plan), plan.requests
        images = draw(gate, batch, requests, make) if gate else make(batch, [requests[i] for i in batch])
        yield from (images[index - batch[0]] for index in missing)
        if broken is not None:
            broken = None if any(image.finite for image in images) else [*broken, *missing]
        if broken is not None and len(broken) >= HOPELESS:
            where = f"{place_of(plan.requests, broken[0])} first (seed {plan.requests[broken[0]].seed})"
            raise OnbrandError(
                "image", f"none of the first {len(broken)} images could be made, {where}: {overflow(plan)}"
            )


def _batches(plan: Plan) -> Iterator[range]:
    """Consecutive requests of one size, batch_size at most."""
    last = 0
    for _, same in groupby(plan.sizes):
        first, last = last, last + len(list(same))
        for start in range(first, last, plan.config.batch_size):
            yield range(start, min(start + plan.config.batch_size, last))


@torch.no_grad()
def _batch(plan: Plan, batch: Sequence[int], requests: Sequence[Request]) -> list[GeneratedImage]:
    pipe, config = plan.pipe, plan.config
    asked = plan.sizes[batch[0]]
    prior = plan.prior if plan.prior is None or asked is None or plan.start.start == "noise" else plan.prior.at(asked)
    prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
    classes = None if plan.classes is None else [plan.classes[index] for index in batch]
    start_images = images_of(requests, prior, asked) if plan.start.start == "image" else None
    size = asked or size_of(pipe, prior, start_images)
    negative = [request.negative_prompt for request in requests] if plan.guidance_scale > 1 else None
    call = {
        **family_of(pipe).call(pipe, prompts, negative, size),
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": plan.guidance_scale,
        **conditions_of(pipe, requests, config, size),
    }
    start = plan.start
    latents = begin(pipe, prior, start, prompts, classes, seeds, start_images, start.look(call), size)
    # the steps' randomness has generators of its own: the seed's first draw is the start's noise
    generators = [generator_for(seed, "steps") for seed in seeds]
    tracing = batch[0] < config.trace
    schedule = start.schedule
    recorder = Recorder(latents * schedule.init_noise_sigma, schedule.prediction_type, plan.guidance_scale)
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


def _in_turn(callbacks: Sequence[Callable[..., dict[str, Any]]]) -> Callable[..., dict[str, Any]]:
    """One callback_on_step_end of several: each is given what those before it made."""

    def call(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for callback in callbacks:
            tensors = {**tensors, **callback(pipe, step, timestep, tensors)}
        return tensors

    return call
