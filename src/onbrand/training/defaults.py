"""Whether model, pictures, prior and machine fit a run's settings: asked before any work is spent."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate.tracking import get_available_trackers

from onbrand.data.conditioning import read_conditioning
from onbrand.models.controlnet import nets_of
from onbrand.models.optim import optimizer_of
from onbrand.models.pipeline import fingerprint
from onbrand.options.train import TrainConfig
from onbrand.training.objective import Objective, make_objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""accelerate's names of arithmetic in half precision."""


def settled(config: TrainConfig, prior: Prior | None) -> TrainConfig:
    """The settings with their offset spelled out: text where every class of the prior has a regression, else mean."""
    if config.offset is not None:
        return config
    text = prior is not None and set(prior.classes) == set(prior.text)
    return replace(config, offset="text" if text else "mean")


def check(
    pipe: StableDiffusionPipeline,
    pictures: Summary,
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
) -> Objective:
    """The objective of a run, once model, pictures and prior are known to fit the settings; ValueError where not."""
    objective = make_objective(pipe.scheduler, config)
    precision(config, pipe.device)
    weights = [weight for network in (pipe.unet, *nets_of(pipe)) for weight in network.parameters()]
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    if kinds != ["float32"]:
        raise ValueError(
            f"a model is trained from its weights in float32; these are {', '.join(kinds)}: load it anew, with dtype "
            "float32, and set engine.precision for faster arithmetic"
        )
    optimizer_of(config.optim.name)
    trackers = [str(name) for name in get_available_trackers()]
    if config.log.tracker and config.log.tracker not in trackers:
        raise ValueError(
            f"log.tracker must be known to accelerate and installed (here: {', '.join(trackers) or 'none'}"
            f"); got {config.log.tracker}: install it, or set null for log.jsonl alone"
        )
    if not pictures.used:
        raise ValueError(f"training needs pictures; got {pictures}")
    if config.method == "controlnet":
        check_controls(pictures.used)
        with ThreadPoolExecutor() as pool:  # all of them, for one that breaks off would end the run in its midst
            list(pool.map(lambda record: read_conditioning(str(record.conditioning), (1, 1)), pictures.used))
    if prior is None:
        if config.offset != "none":
            raise ValueError(f"offset {config.offset} needs a prior; got none: fit one first, or take offset none")
        return objective
    vae = pipe.vae.config
    prior.check(vae=fingerprint(pipe.vae), scaling_factor=vae.scaling_factor, shift_factor=vae.shift_factor or 0.0)
    classes = sorted({record.class_name for record in pictures.used})
    prior.mean(classes)
    untold = [name for name in classes if name not in prior.text]
    if config.offset == "text" and untold:
        raise ValueError(
            f"offset text needs a regression from text for every class; {', '.join(map(repr, untold))} has none: fit "
            "with 20 captioned pictures a class or more and --k above 0, or take offset mean"
        )
    if config.offset == "pca":
        for name in classes:
            prior.gaussians[name].check_k(config.k)
    mean, _ = store.get(pictures.keys[:1])
    if mean.shape[1:] != prior.shape:
        raise ValueError(
            f"the prior's x_start and the pictures' latents must have one shape; got {tuple(prior.shape)} and "
            f"{tuple(mean.shape[1:])}: encode and fit at one resolution"
        )
    return objective


def check_controls(records: Sequence[Record]) -> None:
    """Raises ValueError unless every picture has a control picture."""
    lacking = [record.file for record in records if record.conditioning is None]
    if lacking:
        raise ValueError(
            f"a ControlNet is trained on a control picture for each; {len(lacking)} of {len(records)} have none, "
            f"{lacking[0]} first: name it in metadata.jsonl as conditioning_file_name"
        )


def precision(config: TrainConfig, device: torch.device) -> str:
    """accelerate's name of the arithmetic on `device`: no, bf16 or fp16. ValueError for one that it does not have."""
    asked = config.engine.precision
    if asked == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if asked == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; the model is on the CPU: take bf16 or no")
    return asked
