"""The loss on held-out pictures: always the same pictures under the same noise at the same timesteps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core import Prior
from onbrand.data.latents import Summary
from onbrand.data.records import Record
from onbrand.evaluation.check import judge_pictures
from onbrand.evaluation.loading import Pictures, pixels_of
from onbrand.evaluation.reference import Reference
from onbrand.options.generate import GenerateConfig
from onbrand.options.train import TrainConfig
from onbrand.reporting.figures import contact_sheet
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import Plan, plan, run
from onbrand.training import rng
from onbrand.training.batches import Batches
from onbrand.training.export import describe
from onbrand.training.objective import Batch, Objective, make_objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store

COUNT = 64
"""Triples of picture, noise and timestep; of fewer pictures, each is met again under other noise."""
SEED = rng.seed_of(0, "held", 0)
"""Not the run's: runs of other seeds are measured alike."""


def check_held(config: TrainConfig, given: bool) -> None:
    """Raises ValueError where held-out pictures are given and never looked at, or to be looked at and not given."""
    if given != bool(config.log.held_every):
        raise ValueError(
            "a held-out loss needs held-out pictures and log.held_every, the steps between two looks; got "
            + (f"log.held_every {config.log.held_every} alone" if not given else "pictures alone")
            + ": give both or neither"
        )


def held_out(held: Summary, trained: Summary) -> Summary:
    """COUNT of the held-out pictures at most, drawn by SEED, without those that are trained on too, of which it warns.

    Raises ValueError where none is left.
    """
    known = set(trained.keys)
    pairs = [(record, key) for record, key in zip(held.used, held.keys, strict=True) if key not in known]
    twice = len(held.used) - len(pairs)
    if not pairs:
        raise ValueError(
            f"held-out pictures are pictures that are not trained on; of {len(held.used)} given, {twice} are trained "
            "on: hold out another split or folder, or train on one split"
        )
    if twice:
        warnings.warn(
            f"{twice} of {len(held.used)} held-out pictures are trained on too, byte for byte, and are passed over",
            stacklevel=2,
        )
    pairs = [pairs[i] for i in sorted(rng.order(SEED, len(pairs), range(min(COUNT, len(pairs)))))]
    return Summary([record for record, _ in pairs], [key for _, key in pairs], [])


def fixed(
    pipe: StableDiffusionPipeline,
    pictures: Summary | None,
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
    timesteps: int,
    size: int,
) -> list[Batch]:
    """COUNT triples in batches of `size`, as the run would draw them, but that no caption is dropped and no input
    perturbed; none where no pictures are given. timesteps: how many the model has."""
    if pictures is None:
        return []
    loss = replace(config.loss, dropout=0.0, input_perturbation=0.0)
    batches = Batches(pipe, pictures, store, prior, replace(config, seed=SEED, loss=loss), timesteps)
    return [batches(range(first, min(first + size, COUNT))) for first in range(0, COUNT, size)]


@torch.no_grad()
def loss_on(batches: Sequence[Batch], objective: Objective, denoise: Callable[..., Tensor]) -> float:
    """Mean of the objective over all samples of `batches`, whatever their sizes."""
    return float(torch.cat([objective(denoise, batch).each for batch in batches]).mean())


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
