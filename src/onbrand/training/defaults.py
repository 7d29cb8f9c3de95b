"""What a run's settings leave open, and whether model, images, prior and machine fit them: before any work is spent."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate.tracking import get_available_trackers

from onbrand.data.conditioning import read_conditioning
from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of
from onbrand.models.denoiser import adapted_layers
from onbrand.models.optim import optimizer_of
from onbrand.models.pipeline import fingerprint, text_fingerprint
from onbrand.options.train import TrainSettings
from onbrand.training.objective import Objective, make_objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""mixed_precision -> dtype, of arithmetic in half precision."""


def resolve_defaults(config: TrainSettings, prior: Prior | None) -> TrainSettings:
    """The settings with their start: text if every class of the prior has a regression from text, else mean."""
    if config.start is not None:
        return config
    text = prior is not None and all(set(one.classes) == set(one.text) for one in prior.all)
    return replace(config, start="text" if text else "mean")


def resolve_precision(config: TrainSettings, device: torch.device) -> str:
    """mixed_precision on a device.

    Returns:
        no, bf16 or fp16.

    Raises:
        OnbrandError: the device does not have it.
    """
    precision = config.mixed_precision
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and device.type == "cpu":
        raise OnbrandError("training", "mixed_precision fp16 needs a GPU; the model is on the CPU: take bf16 or no")
    return precision


def check_run(
    pipe: DiffusionPipeline,
    images: Summary,
    store: Store,
    prior: Prior | None,
    config: TrainSettings,
) -> Objective:
    """Check that model, images, prior and machine fit the settings.

    Args:
        pipe: the model, on the device of the run.
        images: the images trained on, or those of the validation loss.
        store: their latents.
        prior: the prior; None for start noise.
        config: the settings, their start resolved.

    Returns:
        The objective of the run.

    Raises:
        OnbrandError: the first thing that does not fit.
    """
    objective = check_settings(pipe, prior, config)
    if not images.used:
        raise OnbrandError("training", f"training needs images; got {images}: give images that can be read")
    if config.method == "controlnet":
        check_control_images(images.used)
        with ThreadPoolExecutor() as pool:  # all of them: one that cannot be read would end the run in its midst
            list(pool.map(lambda record: read_conditioning(record.conditioning or "", (1, 1)), images.used))
    if prior is not None:
        check_prior(pipe, images, store, prior, config)
    return objective


def check_settings(pipe: DiffusionPipeline, prior: Prior | None, config: TrainSettings) -> Objective:
    """What `check_run` checks that needs no images: before these are encoded.

    Args:
        pipe: the model, on the device of the run.
        prior: the prior; None for start noise.
        config: the settings, their start resolved.

    Returns:
        The objective of the run.

    Raises:
        OnbrandError: the first thing that does not fit.
    """
    objective = make_objective(pipe.scheduler, config)
    resolve_precision(config, pipe.device)
    weights = [weight for network in (pipe.unet, *nets_of(pipe)) for weight in network.parameters()]
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    if dtypes != ["float32"]:
        raise OnbrandError(
            "training",
            f"a model is trained from its weights in float32; these are {', '.join(dtypes)}: load it anew, with dtype "
            "float32, and set mixed_precision for faster arithmetic",
        )
    optimizer_of(config.optimizer)
    if config.method == "lora":
        check_rank(pipe, config)
    trackers = [str(name) for name in get_available_trackers()]
    if config.report_to and config.report_to not in trackers:
        raise OnbrandError(
            "training",
            f"report_to must be known to accelerate and installed (here: {', '.join(trackers) or 'none'}"
            f"); got {config.report_to}: install it, or leave report_to out",
        )
    if prior is not None:
        check_encoders(pipe, prior, config)
    elif config.start != "noise":
        raise OnbrandError(
            "training",
            f"start {config.start} needs a prior; got none: fit one first, or take start noise",
        )
    return objective


def check_rank(pipe: DiffusionPipeline, config: TrainSettings) -> None:
    """Raises OnbrandError for a LoRA of a higher rank than the smallest layer that it adapts has: a part of its weights
    would say nothing."""
    layers = adapted_layers(pipe, config.target_modules, config.train_text_encoder)
    ranks = {name: min(layer.weight.flatten(1).shape) for name, layer in layers.items()}
    name = min(ranks, key=lambda name: ranks[name], default="")
    if name and config.rank > ranks[name]:
        raise OnbrandError(
            "training",
            f"rank must be at most that of the smallest layer adapted, {ranks[name]} of {name}; got {config.rank}: "
            f"take {ranks[name]} or less",
        )


def check_prior(pipe: DiffusionPipeline, images: Summary, store: Store, prior: Prior, config: TrainSettings) -> None:
    """Raises OnbrandError unless the prior knows the images' classes, and has their starts."""
    classes = sorted({record.class_name for record in images.used})
    prior.mean(classes)
    textless = [name for name in classes if name not in prior.text]
    if config.start == "text" and textless:
        raise OnbrandError(
            "training",
            "start text needs a regression from text for every class; there is none for "
            f"{', '.join(map(repr, textless))}: fit with 20 captioned images a class or more and k above 0, or take "
            "start mean",
        )
    if config.start == "pca":
        for name in classes:
            prior.check_k(name, config.k)
    mean, _ = store.get(images.keys[:1])
    if mean.shape[1:] != prior.shape:
        raise OnbrandError(
            "training",
            f"the prior's x_start and the images' latents must have one shape; got {tuple(prior.shape)} and "
            f"{tuple(mean.shape[1:])}: fit and train at one resolution",
        )


def check_encoders(pipe: DiffusionPipeline, prior: Prior, config: TrainSettings) -> None:
    """Raises OnbrandError unless the prior is of the model's VAE and, for start text, of its text encoder."""
    vae = pipe.vae.config
    prior.check(
        vae=fingerprint(pipe.vae),
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor or 0.0,
        text_encoder=text_fingerprint(pipe) if config.start == "text" else None,
    )


def check_control_images(records: Sequence[Record]) -> None:
    """Raises OnbrandError unless every image has a control image."""
    files = [record.file for record in records if record.conditioning is None]
    if files:
        raise OnbrandError(
            "training",
            f"a ControlNet is trained on a control image for each image; {len(files)} of {len(records)} have none, "
            f"{files[0]} first: name it in metadata.jsonl as conditioning_file_name",
        )
