"""Pictures made during training, from the start that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.core import Prior
from onbrand.data.records import Record
from onbrand.generate.config import GenerateConfig
from onbrand.generate.requests import Request
from onbrand.generate.sample import plan, run
from onbrand.report.figures import contact_sheet
from onbrand.train.config import TrainConfig
from onbrand.train.model import describe
from onbrand.train.objective import make_objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

VALIDATED = 8
"""Captions that validation pictures are made of."""


def validation(
    pipe: StableDiffusionPipeline, records: Sequence[Record], prior: Prior | None, config: TrainConfig, out: Path
) -> Callable[[StableDiffusionPipeline, int], None]:
    """Makes out/validation/step-<step>.png of the first captions, always with the same seeds and the trained start.

    Checked here, before training: ValueError where that start and the model's own 20 steps do not go together.
    """
    asked = list(dict.fromkeys((record.text, record.class_name) for record in records))[:VALIDATED]
    requests = [Request(text, seed, class_name) for seed, (text, class_name) in enumerate(asked)]
    start = "noise" if config.offset == "none" else config.offset
    settings = GenerateConfig(start=start, k=config.k if start == "pca" else None)
    planned = plan(pipe, prior, requests, settings, describe(config, make_objective(pipe.scheduler, config).first))

    def validate(pipe: StableDiffusionPipeline, step: int) -> None:
        pictures = [picture.image for picture in run(planned)]
        folder = out / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(pictures, [text for text, _ in asked], [()] * len(asked), columns=4)
        sheet.save(folder / f"step-{step:06d}.png")

    return validate
