"""Prior -> x_start -> the `latents=` that a pipeline starts from (Eq. 8-10), one seed a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from onbrand.models.pipeline import device_of, embed, encode, offset_of, to_x0
from onbrand.models.scheduler import VANISHING, Schedule, describe, latents_for, set_steps
from onbrand.options.generate import Start
from onbrand.sampling.checks import check_effect, check_fresh, check_look, check_prior, check_residual, check_trained
from onbrand.sampling.look_ahead import Look, check_call, estimate_ahead
from onbrand.sampling.noise import generator_for, noise_for

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior

LOOKS: dict[Start, int] = {"mean": 2, "text": 1}
"""How often a start looks ahead where nothing is asked for, under weights trained as usual: by docs/results-look.md."""


def start(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    prompts: str | Sequence[str] | None = None,
    *,
    seeds: int | Sequence[int],
    classes: str | Sequence[str] | None = None,
    kind: Start | None = None,
    k: int | None = None,
    num_inference_steps: int = 20,
    images: Tensor | None = None,
    literal: bool = False,
    residual: bool = False,
    zero_mean: bool | None = None,
    look_ahead: int | None = None,
    look_ahead_projection: bool = True,
    offset: Mapping[str, Any] | Literal["recorded"] | None = "recorded",
    **call: Any,
) -> Tensor:
    """Latents (B, C, h, w), in the pipeline's dtype and on its device, for `pipe(prompts, latents=...)`.

    B is the number of seeds; a seed has the same noise in any batch and under every kind of start. Give the pipeline
    the same `num_inference_steps`: the first timestep, and with it Eq. 8's abar, follows from it.

    kind: what x_start is. "noise": none, the pipeline's own start. "mean": the class mean. "pca": a draw from the
    class's first `k` components (the number trained with, else 3). "text": the class's mean given the prompt; with
    `residual` a draw of what the text leaves open too. "image": `images` (B or 1, 3, H, W) in [-1, 1], encoded;
    with `k` projected on the class's first `k` components. None: the one that the weights were trained with; for plain
    weights "text" where there are prompts and the prior was fitted with captions, else "mean", without a prior "noise".
    classes: a name a picture, or one for all; None: each prompt's prefix says it.
    literal: Eq. 8 with the paper's abar_{T-1} instead of the abar of the first inference timestep.
    zero_mean: take each channel's mean out of the noise, which the network would read as a tint of the ground; None:
    yes, but from noise.
    look_ahead: how often the network is asked, before sampling, what it would draw from this start; the start goes on
    from that (docs/method.md, section 7). For weights trained as usual; None: twice from "mean", once from "text".
    look_ahead_projection: keep of its answer what lies in the class's components; else all of it.
    call: what else the pipeline will be called with, as guidance_scale, negative_prompt, a ControlNet's image: a look
    asks the network in the same way (with guidance of at most look.GUIDANCE).
    offset: how the weights were offset-trained; "recorded": as the pipeline's folder says; None: plainly.

    ValueError for an unknown kind or class (it lists them), a prior of another VAE, a scheduler that a start cannot
    enter, and offset-trained weights started outside their window (OB003). Warns of a start without effect (OB005),
    another than the trained one, a constant gain started from another timestep (OB006), and one under a sampler that
    draws noise (OB007): run the pipeline inside `matched_steps`.
    """
    if kind is not None and kind not in get_args(Start):
        raise ValueError(f"the start must be one of {', '.join(get_args(Start))}; got {kind!r}")
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    prompts = _spread(prompts, len(seeds), "prompts")
    recorded = offset_of(pipe) if offset == "recorded" else offset
    trained = None if isinstance(recorded, str) else recorded
    live = set_steps(pipe.scheduler, num_inference_steps)
    schedule = describe(live)
    check_call(pipe, call)
    named = classes_of(prior, prompts, _spread(classes, len(seeds), "classes"), len(seeds))
    kind = kind or usual_start(prior, named, trained, prompts is not None)
    k = components(prior, kind, k, trained)
    check_residual(kind, residual)
    check_prior(pipe, prior, kind, named)
    check_effect(kind, schedule)
    check_trained(pipe.scheduler, schedule, num_inference_steps, kind, k, prior, trained)
    if kind != "noise" and trained is not None and trained["gain"] == "constant":
        check_fresh(live)
    even = kind != "noise" if zero_mean is None else zero_mean
    look = None
    usual = 0 if prompts is None else usual_look(kind, prior, named, trained, schedule)
    looks = usual if look_ahead is None else look_ahead
    check_look(kind, looks, look_ahead_projection, prior, named, trained, schedule)
    if looks:
        if prompts is None:
            raise ValueError(f"look_ahead {looks} asks what the network would draw of prompts; got none: give prompts")
        asked = {"prompt": prompts, "num_inference_steps": num_inference_steps, **call}
        look = Look(looks, look_ahead_projection, even, asked)
    return begin(pipe, prior, live, prompts, named, seeds, kind, k, images, literal, residual, even, look)


def begin(
    pipe: StableDiffusionPipeline,
    prior: Prior | None,
    live: Any,
    prompts: Sequence[str] | None,
    classes: Sequence[str] | None,
    seeds: Sequence[int],
    kind: Start = "mean",
    k: int = 0,
    images: Tensor | None = None,
    literal: bool = False,
    residual: bool = False,
    zero_mean: bool = False,
    look: Look | None = None,
) -> Tensor:
    """`start` without its checks, on a scheduler already set (`schedule.set_steps`)."""
    if kind == "noise" or (kind != "image" and (prior is None or classes is None)):
        latents = noise_for(seeds, shape_of(pipe) if prior is None else prior.shape, zero_mean)
    else:
        if kind == "image":
            x_start = _encoded(pipe, prior, images, len(seeds))
            if k:
                assert prior is not None and classes is not None
                x_start = prior.project(x_start, classes, k)
        else:
            assert prior is not None and classes is not None
            x_start = _drawn(pipe, prior, prompts, classes, seeds, kind, k, residual)
        if look is not None:
            x_start = estimate_ahead(pipe, prior, live, x_start, classes, seeds, look)
        abar = float(live.alphas_cumprod[-1]) if literal else None
        latents = latents_for(live, x_start, noise_for(seeds, x_start.shape[1:], zero_mean), abar)
    return latents.to(device_of(pipe), pipe.unet.dtype)


def classes_of(
    prior: Prior | None, prompts: Sequence[str] | None, classes: Sequence[str | None] | None, count: int
) -> list[str] | None:
    """A class for each of `count` pictures: as given, or (None) by its prompt's prefix; None without a prior.

    ValueError, listing the classes, for one that the prior does not know.
    """
    if prior is None:
        return None
    prompts = [""] * count if prompts is None else prompts
    given = [None] * count if classes is None else classes
    named = [prior.class_of(prompt) if name is None else name for name, prompt in zip(given, prompts, strict=True)]
    for name in named:
        if name not in prior.classes:
            raise ValueError(f"unknown class {name!r}; this prior knows {', '.join(map(repr, prior.classes))}")
    return named


def components(prior: Prior | None, kind: Start, k: int | None, offset: Mapping[str, Any] | None) -> int:
    """How many components a start has: a pca start k, or the number trained with, or 3 (fewer if fitted); an image
    start k, or 0 for its whole latent; 0 for others. ValueError where that many were not fitted, or others have k."""
    if k is not None and kind not in ("pca", "image"):
        raise ValueError(f"k counts the components of a pca or image start; got {k} and start {kind}: leave k out")
    if kind == "image" and k is not None and prior is None:
        raise ValueError(
            f"an image start of k = {k} components needs a prior: give one, or leave k out (the whole latent)"
        )
    if prior is None or kind not in ("pca", "image") or (kind == "image" and k is None):
        return 0
    if k is None:
        trained = offset.get("k") if offset is not None and offset["kind"] == "pca" else None
        k = trained or min(3, prior.k)
    if not 1 <= k <= prior.k:
        raise ValueError(
            f"the start {kind!r} takes k = 1..{prior.k}, as many as were fitted; got {k}: fit with a larger k"
        )
    return k


def usual_start(
    prior: Prior | None, classes: Sequence[str] | None, offset: Mapping[str, Any] | None, prompts: bool = True
) -> Start:
    """The start where none is asked for: the one trained with; for plain weights the mean given the text where there
    are prompts and every class has a regression, else the class mean; noise without a prior."""
    if offset is not None:
        return offset["kind"]
    if prior is None:
        return "noise"
    return "text" if prompts and set(classes or ()) <= set(prior.text) else "mean"


def usual_look(
    kind: Start, prior: Prior | None, classes: Sequence[str] | None, offset: Mapping[str, Any] | None,
    schedule: Schedule,
) -> int:  # fmt: skip
    """How often a start looks ahead where nothing is asked for: LOOKS, under plain weights and where every class has
    components; else 0."""
    if offset is not None or prior is None or schedule.abar < VANISHING:
        return 0
    return LOOKS.get(kind, 0) if all(prior.gaussians[name].k for name in classes or ()) else 0


def _drawn(
    pipe: StableDiffusionPipeline,
    prior: Prior,
    prompts: Sequence[str] | None,
    classes: Sequence[str],
    seeds: Sequence[int],
    kind: Start,
    k: int,
    residual: bool,
) -> Tensor:
    """x_start (B, C, h, w) from the prior, float32 on the CPU; a seed's draw is the same in any batch."""
    if kind == "mean":
        return prior.mean(classes).float().cpu()
    if kind == "pca":
        pairs = zip(classes, seeds, strict=True)
        drawn = [prior.gaussians[name].draw(1, k, generator_for(seed, "x_start")) for name, seed in pairs]
        return torch.cat(drawn).float().cpu()
    if prompts is None:
        raise ValueError("the start 'text' needs prompts")
    drawn = []
    for text, name, seed in zip(embed(pipe, prompts)[1].float().cpu(), classes, seeds, strict=True):
        gaussian, conditional = prior.gaussians[name], prior.text[name]
        if residual:
            noise = torch.randn(1, gaussian.k, generator=generator_for(seed, "x_start"))
            drawn.append(conditional.draw(gaussian, text[None], noise))
        else:
            drawn.append(conditional.mean(gaussian, text[None]))
    return torch.cat(drawn).float().cpu()


def _encoded(pipe: StableDiffusionPipeline, prior: Prior | None, images: Tensor | None, count: int) -> Tensor:
    """x_start (B, C, h, w) from pictures (B or 1, 3, H, W): the posterior's mode, float32 on the CPU."""
    if images is None or len(images) not in (1, count):
        got = "none" if images is None else len(images)
        raise ValueError(f"an image start takes one picture, or one a seed ({count}); got {got}")
    x_start = to_x0(pipe, encode(pipe, images)[0]).cpu().expand(count, -1, -1, -1)
    if prior is not None and x_start.shape[1:] != prior.shape:
        wanted = prior.provenance.resolution
        raise ValueError(f"pictures are {wanted} (H, W) for this prior; got {tuple(images.shape[2:])}: pad them")
    return x_start


def _spread(values: str | Sequence[str] | None, count: int, what: str) -> list[str] | None:
    if values is None:
        return None
    listed = [values] * count if isinstance(values, str) else list(values)
    if len(listed) != count:
        raise ValueError(f"one of {what} for each of {count} seeds, or one for all; got {len(listed)}")
    return listed


def shape_of(pipe: StableDiffusionPipeline) -> tuple[int, int, int]:
    """Latent (C, h, w) that the UNet was made for."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return pipe.unet.config.in_channels, height, width
