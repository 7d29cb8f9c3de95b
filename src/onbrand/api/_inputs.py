"""What the verbs are given: models, priors, photos; opened and checked before any work is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onbrand.core import Prior
from onbrand.core.prior import FILE as PRIOR
from onbrand.data.latents import Summary
from onbrand.models import pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def open_model(
    model: str | Path,
    device: str | None,
    dtype: str = "float32",
    lora: str | Path | None = None,
    scale: float = 1.0,
    controlnet: Sequence[str | Path] = (),
    offload: bool = False,
) -> StableDiffusionPipeline:
    """The pipeline on `device`, or on a GPU where there is one; ValueError for a device that is not there."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the device must be one that torch has here; got {device!r} ({reason}): take cpu") from error
    return pipeline.load(model, device, dtype, lora=lora, lora_scale=scale, controlnet=controlnet, offload=offload)


def prior_file(prior: str | Path) -> Path:
    """The prior's file: `prior` itself, or in the brand's folder."""
    return Path(prior) / PRIOR if Path(prior).is_dir() else Path(prior)


def open_prior(prior: str | Path | None, model: str | Path | None = None) -> Prior | None:
    """The prior given, or else the one saved beside the model, if there is any."""
    if prior is not None:
        return Prior.load(prior_file(prior))
    beside = pipeline.model_folder(model) / "onbrand" / PRIOR if model is not None else None
    return Prior.load(beside) if beside is not None and beside.is_file() else None


def size_of(pipe: StableDiffusionPipeline, resolution: int | tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of the pictures: as given (one number: square), or the model's own; ValueError if the VAE cannot."""
    factor = pipeline.factor_of(pipe)
    if resolution is None:
        side = pipe.unet.config.sample_size
        resolution = side * factor if isinstance(side, int) else (side[0] * factor, side[1] * factor)
    height, width = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(f"a side is a multiple of {factor}, by which this model's VAE shrinks; got {height} x {width}")
    return height, width


def say_summary(summary: Summary, shown: int = 20) -> None:
    """Print how many photos are used, and the refused ones with their reasons (the first `shown`)."""
    rate = f", {summary.encoded / summary.seconds:.0f} a second" if summary.encoded and summary.seconds else ""
    print(f"{len(summary.used)} photos used ({summary.encoded} encoded now{rate}), {len(summary.refused)} refused")
    for refused in summary.refused[:shown]:
        print(f"  {refused}")
    if len(summary.refused) > shown:
        print(f"  ... and {len(summary.refused) - shown} more, all in fit.json")
