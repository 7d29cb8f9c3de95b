"""Pictures made during training, from the start that is trained, and the share of them that is on brand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.api.judging import judge_pictures
from onbrand.api.materials import Pictures, pixels_of
from onbrand.core import Prior
from onbrand.data.records import Record
from onbrand.generate.config import GenerateConfig
from onbrand.generate.requests import Request
from onbrand.generate.sample import Plan, plan, run
from onbrand.measure.reference import Reference
from onbrand.report.figures import contact_sheet
from onbrand.train.config import TrainConfig
from onbrand.train.model import describe
from onbrand.train.objective import make_objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass
class Validation:
    """What the loop calls as `validate(pipe, step)`; made by `validation`."""

    planned: Plan
    folder: Path
    reference: Reference | None = None
    """What the photos are like, at `size`: set once all else was checked, for learning it takes time."""
    size: tuple[int, int] = (0, 0)
    """(H, W) that pictures are judged at."""

    def __call__(self, pipe: StableDiffusionPipeline, step: int) -> float | None:
        """Makes step-<step>.png. With a reference: the share of its pictures that pass every property which `check`
        judges without a reader, and the sheet says what the others fail."""
        made = list(run(self.planned))
        images, texts = [picture.image for picture in made], [picture.request.prompt for picture in made]
        failed: list[Sequence[str]] = [()] * len(made)
        share = None
        if self.reference:
            names, kinds = [str(picture.index) for picture in made], [picture.class_name or "" for picture in made]
            opened = Pictures(names, images, pixels_of(images, self.size), texts, kinds)
            prior = self.planned.prior
            content = judge_pictures(opened, self.reference, prior, pipe if prior else None)
            failed, share = [entry["failed"] for entry in content["pictures"]], float(content["all"]["share"])
        self.folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(images, texts, failed, columns=4).save(self.folder / f"step-{step:06d}.png")
        return share


def validation(
    pipe: StableDiffusionPipeline, records: Sequence[Record], prior: Prior | None, config: TrainConfig, out: Path
) -> Validation:
    """Makes out/validation/step-<step>.png of the first captions, always with the same seeds and the trained start.

    Checked here, before training: ValueError where that start and the model's own 20 steps do not go together.
    """
    captions = dict.fromkeys((record.text, record.class_name, _controls(record, config)) for record in records)
    asked = islice(cycle(captions), config.log.pictures)
    requests = [Request(text, seed, name, conditioning=files) for seed, (text, name, files) in enumerate(asked)]
    start = "noise" if config.offset == "none" else config.offset
    settings = GenerateConfig(start=start, k=config.k if start == "pca" else None)
    planned = plan(pipe, prior, requests, settings, describe(config, make_objective(pipe.scheduler, config).first))
    return Validation(planned, out / "validation")


def _controls(record: Record, config: TrainConfig) -> tuple[str, ...]:
    return (str(record.conditioning),) if config.method == "controlnet" else ()
