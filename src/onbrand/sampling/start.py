"""Prior -> x_start -> the `latents=` that a pipeline starts from (Eq. 8-10), one seed an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import record_of
from onbrand.models.controlnet import nets_of
from onbrand.models.families import factor_of, family_of
from onbrand.models.pipeline import device_of, embed, encode, overflow, to_x0, warn_long
from onbrand.models.scheduler import VANISHING, Schedule, latents_for, schedule_of, set_steps
from onbrand.options._base import check_needs
from onbrand.options.generate import NEEDS, SamplingSettings, Start
from onbrand.sampling.checks import (
    check_effect,
    check_look,
    check_prior,
    check_sampling_noise,
    check_trained_start,
)
from onbrand.sampling.look_ahead import Look, check_call, estimate_ahead
from onbrand.sampling.noise import generator_for, noise_for, seeds_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

LOOKS: dict[Start, int] = {"mean": 2, "text": 1}
"""How often a start looks ahead where nothing is asked for, under plain weights: by docs/research/results.md."""


def start(
    pipe: DiffusionPipeline,
    prior: Prior | None,
    prompts: str | Sequence[str] | None = None,
    *,
    seeds: int | Sequence[int],
    classes: str | Sequence[str] | None = None,
    start: Start | None = None,
    k: int | None = None,
    num_inference_steps: int = 20,
    images: Tensor | None = None,
    literal: bool = False,
    residual: bool = False,
    zero_mean: bool | None = None,
    look_ahead: int | None = None,
    look_ahead_projection: bool = True,
    resolution: int | tuple[int, int] | None = None,
    trained_start: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
    **call: Any,
) -> Tensor:
    """Latents for `pipe(prompts, latents=...)`: where the brand's images start (Eq. 8-10).

    A seed has the same noise in any batch and under every start. Give the pipeline the same `num_inference_steps`: the
    first timestep, and with it Eq. 8's abar, follows from it.

    Args:
        pipe: the pipeline that will run
        prior: the brand's; None: start from noise, or from images
        prompts: one an image, or one for all
        seeds: one an image
        classes: a name an image, or one for all; None: each prompt's prefix says it
        start: what x_start is. "noise": none, the pipeline's own start. "mean": the class mean. "pca": a draw from the
            class's first `k` components. "text": the class's mean given the prompt. "image": `images`, encoded. None:
            the one that the weights were trained with; for plain weights "text" if there are prompts and the prior was
            fitted with captions, else "mean"; without a prior "noise"
        k: components of "pca" (None: the number trained with, else 3), or those that "image" is projected on (None: the
            whole latent)
        num_inference_steps: of the run
        images: for "image": `(B, 3, H, W)` or `(1, 3, H, W)` in [-1, 1]
        literal: Eq. 8 with the paper's abar_{T-1} instead of the abar of the first inference timestep
        residual: with "text", also draw what the text leaves open
        zero_mean: take each channel's mean out of the noise, which the network would read as a tint of the background;
            None: yes, but from noise
        look_ahead: how often the network is asked, before sampling, what it would draw from this start; the start goes
            on from that (docs/concepts/method.md, section 7). Only for weights trained without a start; None: twice
            from "mean", once from "text"
        look_ahead_projection: keep only what lies in the class's components of its answer
        resolution: (H, W) of the images in pixels, or a side: with a prior one that the brand was fitted at. None: the
            prior's, the images' or the model's own
        trained_start: the start that the weights were trained with; "recorded": as the pipeline's folder says; None:
            noise
        **call: what else the pipeline will be called with, such as guidance_scale, negative_prompt, a ControlNet's
            image: a look asks the network in the same way (with guidance of at most look_ahead.GUIDANCE)

    Returns:
        Latents `(B, C, h, w)`, one a seed, in the pipeline's dtype and on its device.

    Raises:
        OnbrandError: an unknown start or class (it lists them), a prior of another VAE, a scheduler that a start cannot
            enter, or weights started outside the window that they were trained with (OB003).

    Warns:
        UserWarning: a start without effect (OB005), another than the trained one, a constant gain started from another
            timestep (OB006), or one under a sampler that draws noise (OB007): run the pipeline inside `matched_steps`.
    """
    seeds = seeds_of(seeds)
    prompts = _one_each(prompts, len(seeds), "prompts")
    settings = SamplingSettings(
        start=start,
        k=k,
        residual=residual,
        zero_mean=zero_mean,
        look_ahead=look_ahead,
        look_ahead_projection=look_ahead_projection,
        literal=literal,
        num_inference_steps=num_inference_steps,
    )
    check_call(pipe, call)
    names = classes_of(prior, prompts, _one_each(classes, len(seeds), "classes"), len(seeds))
    asked = (resolution, resolution) if isinstance(resolution, int) else resolution
    if asked is not None and (len(asked) != 2 or min(asked) < 1 or any(side % factor_of(pipe) for side in asked)):
        raise OnbrandError("start", f"resolution is one or two multiples of {factor_of(pipe)}; got {resolution}")
    if prior is not None and names is not None and start != "noise":
        for name in dict.fromkeys(names):
            prior.at(asked or prior.size).check_k(name, 0)
    sizes = None if asked is None else [asked] * len(seeds)
    resolved = resolve_start(pipe, prior, pipe.scheduler, names, settings, trained_start, prompts is not None, sizes)
    if prior is not None and asked is not None and resolved.start != "noise":
        prior = prior.at(asked)
    if resolved.matched:
        check_sampling_noise(resolved.scheduler)
    look = None
    if resolved.look_ahead:
        if prompts is None:
            raise OnbrandError(
                "start",
                f"look_ahead {resolved.look_ahead} asks what the network would draw of prompts; got none: give prompts",
            )
        size = family_of(pipe).size_of_call(asked or size_of(pipe, prior, images))
        look = resolved.look({"prompt": prompts, "num_inference_steps": num_inference_steps, **size, **call})
    negative = call.get("negative_prompt") or ()
    warn_long(pipe, [*(prompts or ()), *([negative] if isinstance(negative, str) else negative)])
    latents = begin(pipe, prior, resolved, prompts, names, seeds, images, look, asked)
    if not bool(torch.isfinite(latents).all()):
        raise OnbrandError("model", overflow("network", pipe.unet.dtype))
    return latents


@dataclass(frozen=True)
class ResolvedStart:
    """A start with everything about it decided and checked."""

    start: Start
    """What x_start is."""
    k: int
    """Components of a pca start, or that an image start is projected on; 0: none."""
    residual: bool
    literal: bool
    zero_mean: bool
    look_ahead: int
    look_ahead_projection: bool
    scheduler: Any
    """Set to its inference steps."""
    schedule: Schedule
    trained_start: Mapping[str, Any] | None
    """The start that the weights were trained with (`checkpoint.KEYS`); None: noise."""

    @property
    def matched(self) -> bool:
        """Whether the noise that a sampler draws is to be matched (`stochastic.match`)."""
        return self.start != "noise" and self.trained_start is not None and self.trained_start["gain"] == "constant"

    def look(self, call: Mapping[str, Any]) -> Look | None:
        """How it looks ahead when the pipeline is called so; None: not at all."""
        if not self.look_ahead:
            return None
        return Look(self.look_ahead, self.look_ahead_projection, self.zero_mean, dict(call))


def resolve_start(
    pipe: DiffusionPipeline,
    prior: Prior | None,
    scheduler: Any,
    classes: list[str] | None,
    settings: SamplingSettings,
    trained_start: Mapping[str, Any] | Literal["recorded"] | None,
    has_prompts: bool = True,
    sizes: Sequence[tuple[int, int] | None] | None = None,
) -> ResolvedStart:
    """The one place where a start is decided and checked, for `start` and for whole folders alike.

    scheduler: of the run, not yet set to its steps; classes: of the images; prompted: whether there are prompts; sizes:
    (H, W) of the images, None: the prior's. Images of all sizes have one start. OnbrandError and warnings as `start`
    says.
    """
    record = record_of(pipe, trained_start)
    live = set_steps(scheduler, settings.num_inference_steps)
    schedule = schedule_of(live)
    parts = _by_size(prior, classes, sizes if settings.start != "noise" else None)
    starts = {default_start(one, names, record, has_prompts) for one, names in parts}
    start: Start = settings.start or ("mean" if len(starts) > 1 else starts.pop())
    looks = settings.look_ahead
    if looks is None:
        looks = min(default_look_ahead(start, *part, record, schedule) for part in parts) if has_prompts else 0
    facts = {"start": start, "look_ahead": looks, "scheduler": schedule.name, "ControlNets": len(nets_of(pipe))}
    check_needs(settings, NEEDS, **facts)
    k = min(components(one, start, settings.k, record) for one, _ in parts)
    for one, names in parts:
        check_prior(pipe, one, start, names)
    check_effect(start, schedule)
    check_trained_start(scheduler, schedule, settings.num_inference_steps, start, k, prior, record)
    for one, names in parts:
        check_look(start, looks, settings.look_ahead_projection, one, names, record, schedule)
    return ResolvedStart(
        start=start,
        k=k,
        residual=settings.residual,
        literal=settings.literal,
        zero_mean=start != "noise" if settings.zero_mean is None else settings.zero_mean,
        look_ahead=looks,
        look_ahead_projection=settings.look_ahead_projection,
        scheduler=live,
        schedule=schedule,
        trained_start=record,
    )


def _by_size(
    prior: Prior | None, classes: list[str] | None, sizes: Sequence[tuple[int, int] | None] | None
) -> list[tuple[Prior | None, list[str] | None]]:
    """The prior of each size, and the classes that are asked of it."""
    if prior is None or classes is None or sizes is None:
        return [(prior, classes)]
    names: dict[tuple[int, int], list[str]] = {}
    for name, size in zip(classes, sizes, strict=True):
        names.setdefault(size or prior.size, []).append(name)
    return [(prior.at(size), own) for size, own in names.items()]


def begin(
    pipe: DiffusionPipeline,
    prior: Prior | None,
    resolved: ResolvedStart,
    prompts: Sequence[str] | None,
    classes: Sequence[str] | None,
    seeds: Sequence[int],
    images: Tensor | None = None,
    look: Look | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Latents (B, C, h, w) of a start that is resolved; classes, prompts, seeds: one an image; look: None: no look;
    size: (H, W) of the images, None: the prior's or the model's own."""
    start = resolved.start
    if start == "noise" or (start != "image" and (prior is None or classes is None)):
        shape = shape_of(pipe) if prior is None else prior.shape
        if size is not None:
            shape = shape[0], size[0] // factor_of(pipe), size[1] // factor_of(pipe)
        latents = noise_for(seeds, shape, resolved.zero_mean)
    else:
        if start == "image":
            x_start = _encode_x_start(pipe, prior, images, len(seeds))
            if resolved.k:
                assert prior is not None and classes is not None
                x_start = prior.project(x_start, classes, resolved.k)
        else:
            assert prior is not None and classes is not None
            x_start = _draw_x_start(pipe, prior, resolved, prompts, classes, seeds)
        if look is not None:
            x_start = estimate_ahead(pipe, prior, resolved.scheduler, x_start, classes, seeds, look)
        abar = float(resolved.scheduler.alphas_cumprod[-1]) if resolved.literal else None
        noise = noise_for(seeds, x_start.shape[1:], resolved.zero_mean)
        latents = latents_for(resolved.scheduler, x_start, noise, abar)
    return latents.to(device_of(pipe), pipe.unet.dtype)


def classes_of(
    prior: Prior | None,
    prompts: Sequence[str] | None,
    classes: Sequence[str | None] | None,
    count: int,
    places: Sequence[str] | None = None,
) -> list[str] | None:
    """A class for each of `count` images: as given, or (None) by its prompt's prefix; None without a prior.

    places: where each is asked for. OnbrandError, listing the classes, for one that the prior does not know.
    """
    if prior is None:
        return None
    prompts = [""] * count if prompts is None else prompts
    entries = [None] * count if classes is None else classes
    names, sizes = [], prior.sizes
    for index, (name, prompt) in enumerate(zip(entries, prompts, strict=True)):
        try:
            names.append(prior.class_of(prompt) if name is None else name)
            if names[-1] not in sizes:
                known = ", ".join(map(repr, sizes))
                raise OnbrandError("prior", f"unknown class {name!r}; this prior knows {known}")
        except OnbrandError as error:
            raise OnbrandError(error.code, f"{places[index] if places else f'image {index}'}: {error}") from error
    return names


def components(prior: Prior | None, start: Start, k: int | None, trained_start: Mapping[str, Any] | None) -> int:
    """How many components a start has: a pca start k, or the number trained with, or 3 (fewer if fitted); an image
    start k, or 0 for its whole latent; 0 for others. OnbrandError if that many were not fitted."""
    if start == "image" and k is not None and prior is None:
        raise OnbrandError(
            "start", f"an image start of k = {k} components needs a prior: give one, or leave k out (the whole latent)"
        )
    if prior is None or start not in ("pca", "image") or (start == "image" and k is None):
        return 0
    if k is None:
        number = trained_start.get("k") if trained_start is not None and trained_start["start"] == "pca" else None
        k = number or min(3, prior.k)
    if not prior.k:
        raise OnbrandError(
            "start",
            f"start {start} draws components; this prior has none: fit with k of 1 or more, or start from the mean",
        )
    if k > prior.k:
        raise OnbrandError(
            "start",
            f"start {start} takes k of 1 to {prior.k}, as many as were fitted; got {k}: take fewer, or fit with a "
            "larger k",
        )
    return k


def default_start(
    prior: Prior | None, classes: Sequence[str] | None, trained_start: Mapping[str, Any] | None, prompts: bool = True
) -> Start:
    """The start where none is asked for: the one trained with; for plain weights the mean given the text where there
    are prompts and every class has a regression, else the class mean; noise without a prior."""
    if trained_start is not None:
        start: Start = trained_start["start"]
        return start
    if prior is None:
        return "noise"
    return "text" if prompts and set(classes or ()) <= set(prior.text) else "mean"


def default_look_ahead(
    start: Start, prior: Prior | None, classes: Sequence[str] | None, trained_start: Mapping[str, Any] | None,
    schedule: Schedule,
) -> int:  # fmt: skip
    """How often a start looks ahead where nothing is asked for: LOOKS, under plain weights and where every class has
    components; else 0."""
    if start not in LOOKS or trained_start is not None or prior is None or schedule.abar < VANISHING:
        return 0
    return LOOKS[start] if all(prior.gaussians[name].k for name in classes or ()) else 0


def _draw_x_start(
    pipe: DiffusionPipeline,
    prior: Prior,
    resolved: ResolvedStart,
    prompts: Sequence[str] | None,
    classes: Sequence[str],
    seeds: Sequence[int],
) -> Tensor:
    """x_start (B, C, h, w) from the prior, float32 on the CPU; a seed's draw is the same in any batch."""
    if resolved.start == "mean":
        return prior.mean(classes).float().cpu()
    if resolved.start == "pca":
        pairs = zip(classes, seeds, strict=True)
        parts = [prior.gaussians[name].draw(1, resolved.k, generator_for(seed, "x_start")) for name, seed in pairs]
        return torch.cat(parts).float().cpu()
    if prompts is None:
        raise OnbrandError("start", "the start 'text' needs prompts")
    parts = []
    for text, name, seed in zip(embed(pipe, prompts)[1].float().cpu(), classes, seeds, strict=True):
        gaussian, conditional = prior.gaussians[name], prior.text[name]
        if resolved.residual:
            noise = torch.randn(1, gaussian.k, generator=generator_for(seed, "x_start"))
            parts.append(conditional.draw(gaussian, text[None], noise))
        else:
            parts.append(conditional.mean(gaussian, text[None]))
    return torch.cat(parts).float().cpu()


def _encode_x_start(pipe: DiffusionPipeline, prior: Prior | None, images: Tensor | None, count: int) -> Tensor:
    """x_start (B, C, h, w) from images (B or 1, 3, H, W): the posterior's mode, float32 on the CPU."""
    if images is None or len(images) not in (1, count):
        number = "none" if images is None else len(images)
        raise OnbrandError("start", f"an image start takes one image, or one a seed ({count}); got {number}")
    x_start = to_x0(pipe, encode(pipe, images)[0]).cpu().expand(count, -1, -1, -1)
    if prior is not None and x_start.shape[1:] != prior.shape:
        size = prior.provenance.resolution
        raise OnbrandError("start", f"images are {size} (H, W) for this prior; got {tuple(images.shape[2:])}: pad them")
    return x_start


def _one_each(values: str | Sequence[str] | None, count: int, what: str) -> list[str] | None:
    if values is None:
        return None
    entries = [values] * count if isinstance(values, str) else list(values)
    if len(entries) != count:
        raise OnbrandError("start", f"one of {what} for each of {count} seeds, or one for all; got {len(entries)}")
    return entries


def shape_of(pipe: DiffusionPipeline) -> tuple[int, int, int]:
    """Latent (C, h, w) that the UNet was made for."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return pipe.unet.config.in_channels, height, width


def size_of(pipe: DiffusionPipeline, prior: Prior | None, images: Tensor | None) -> tuple[int, int]:
    """(H, W) of the images that a run makes: its images', its prior's, or the model's own."""
    if images is not None:
        return images.shape[2], images.shape[3]
    if prior is not None:
        return prior.provenance.resolution
    _, height, width = shape_of(pipe)
    return height * factor_of(pipe), width * factor_of(pipe)
