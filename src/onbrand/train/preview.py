"""Validation pictures: a few captions and seeds, drawn again and again from the start that the run trains for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from onbrand.generate.config import GenerateConfig
from onbrand.generate.requests import Request
from onbrand.generate.sample import sample

from .config import TrainConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior


def preview(
    prior: Prior | None,
    config: TrainConfig,
    out: str | Path,
    requests: Sequence[Request],
    generate: GenerateConfig = GenerateConfig(),  # noqa: B008  (frozen)
) -> Callable[[StableDiffusionPipeline, int], None]:
    """What `train` takes as `validate`: draws `requests` in one row, as `out`/validation/step-000100.png.

    The start is the one that `config` trains for, noise for plain training; the rest is as `generate` says.
    Raises ValueError without requests.
    """
    if not requests:
        raise ValueError("validation pictures need prompts; got none: give some, or set log.validate_every to 0")
    kind = "noise" if config.offset == "none" else config.offset
    generate = replace(generate, start=kind, k=config.k if kind == "pca" else None)
    folder = Path(out) / "validation"

    def validate(pipe: StableDiffusionPipeline, step: int) -> None:
        drawn = [picture.image for picture in sample(pipe, prior, requests, generate, offset=None)]
        width, height = drawn[0].size
        row = Image.new("RGB", (width * len(drawn), height))
        for i, picture in enumerate(drawn):
            row.paste(picture, (i * width, 0))
        folder.mkdir(parents=True, exist_ok=True)
        row.save(folder / ".tmp.png")
        os.replace(folder / ".tmp.png", folder / f"step-{step:06d}.png")

    return validate
