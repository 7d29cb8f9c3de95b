"""Validation: the loss on images that are not trained on, and images made with the weights that would be saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core import Prior
from onbrand.data.buckets import Bucket
from onbrand.data.latents import Summary
from onbrand.data.records import Record
from onbrand.errors import OnbrandError
from onbrand.evaluation.check import judge_images
from onbrand.evaluation.loading import Images, pixels_of
from onbrand.evaluation.reference import Reference
from onbrand.io import write_png
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings
from onbrand.reporting.figures import contact_sheet
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import Plan, plan, run, usable
from onbrand.training import rng
from onbrand.training.batches import mixture
from onbrand.training.defaults import check_control_images
from onbrand.training.export import describe_start
from onbrand.training.objective import Batch, Objective, make_objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store

COUNT = 64
"""Triples of image, noise and timestep; of fewer images, each occurs again under other noise."""
SEED = rng.seed_of(0, "held", 0)
"""Not the run's: runs of other seeds are measured alike. The word is part of the random numbers."""


def check_validation_data(config: TrainSettings, present: bool) -> None:
    """Raises OnbrandError unless validation data are `present` if and only if validation_loss_steps is set."""
    if present != bool(config.validation_loss_steps):
        raise OnbrandError(
            "training",
            "a validation loss needs validation_data and validation_loss_steps, how often it is computed; got "
            + (
                f"validation_loss_steps {config.validation_loss_steps} alone"
                if not present
                else "validation_data alone"
            )
            + ": give both or neither",
        )


def validation_images(
    candidates: Sequence[tuple[Store, Summary]], training_images: Sequence[Summary]
) -> list[tuple[Store, Summary]]:
    """The images of the validation loss: COUNT at most, sampled by SEED, none that is trained on too.

    It warns of those that are trained on too.

    Args:
        candidates: the validation data, a store and what is in it for each size.
        training_images: the images trained on.

    Returns:
        The images, in the order of `candidates`; sizes without any are left out.

    Raises:
        OnbrandError: all candidates are trained on.
    """
    keys = {key for images in training_images for key in images.keys}
    count = sum(len(one.used) for _, one in candidates)
    pairs = [
        (store, record, key)
        for store, one in candidates
        for record, key in zip(one.used, one.keys, strict=True)
        if key not in keys
    ]
    overlap = count - len(pairs)
    if not pairs:
        raise OnbrandError(
            "training",
            f"validation_data are images that are not trained on; of {count} given, {overlap} are "
            "trained on: take another split or folder as validation_data, or train on one split",
        )
    if overlap:
        warnings.warn(
            f"{overlap} of {count} validation images are trained on too, byte for byte, and are passed over",
            stacklevel=2,
        )
    pairs = [pairs[i] for i in sorted(rng.order(SEED, len(pairs), range(min(COUNT, len(pairs)))))]
    sets = [(store, [pair for pair in pairs if pair[0] is store]) for store, _ in candidates]
    return [
        (store, Summary([record for _, record, _ in own], [key for _, _, key in own], [])) for store, own in sets if own
    ]


def validation_batches(
    pipe: DiffusionPipeline,
    images: Sequence[tuple[Store, Summary]],
    prior: Prior | None,
    config: TrainSettings,
    timesteps: int,
    folder: Path | None = None,
) -> list[Batch]:
    """The batches of the validation loss: always the same images under the same noise at the same timesteps.

    They are sampled as those of the run, without caption dropout and input perturbation.

    Args:
        pipe: the model, on the device of the run.
        images: the latents and the validation images, of each size.
        prior: the prior; None for start noise.
        config: the settings of the run.
        timesteps: T, how many timesteps the model has.
        folder: the run's, for captions that do not fit in memory.

    Returns:
        COUNT triples of image, noise and timestep, in batches of train_batch_size; of each size its share.
    """
    size = config.train_batch_size
    config = replace(config, seed=SEED, caption_dropout_rate=0.0, input_perturbation=0.0)
    parts = mixture(pipe, images, prior, config, timesteps, folder)
    batches = []
    for part, number in zip(parts.parts, parts.counts, strict=True):
        count = max(1, round(COUNT * number / sum(parts.counts)))
        batches += [part(range(first, min(first + size, count))) for first in range(0, count, size)]
    return batches


@torch.no_grad()
def mean_loss(batches: Sequence[Batch], objective: Objective, denoise: Callable[..., Tensor]) -> float:
    """The mean of the objective over all samples of `batches`, whatever their sizes."""
    return float(torch.cat([objective(denoise, batch).each for batch in batches]).mean())


@dataclass
class Validation:
    """What the loop calls as `validate(pipe, step)`; `make_validation` makes it."""

    plan: Plan
    folder: Path
    references: Mapping[tuple[int, int], Reference] = field(default_factory=dict)
    """What the photos are like, of each (H, W) that images are judged at: set after all checks, for learning it takes
    time."""

    def __call__(self, pipe: DiffusionPipeline, step: int) -> float | None:
        """Write step-<step>.png.

        With references, the sheet says which properties each image fails.

        Args:
            pipe: the pipeline, its network with the weights that would be saved.
            step: the step's number.

        Returns:
            With references, the rate in [0, 1] of images that pass every property which `check` judges without an
            attribute classifier; else none.
        """
        results = [usable(self.plan, image) for image in run(self.plan)]
        images, texts = [result.image for result in results], [result.request.prompt for result in results]
        failures: list[Sequence[str]] = [()] * len(results)
        rate = None
        if self.references:
            names, classes = [str(result.index) for result in results], [result.class_name or "" for result in results]
            size, prior = next(iter(self.references)), self.plan.prior
            candidates = Images(names, images, pixels_of(images, size), texts, classes)
            content = judge_images(candidates, self.references, prior, pipe if prior else None)
            failures, rate = [entry["failed"] for entry in content["images"]], float(content["all"]["rate"])
        write_png(self.folder / f"step-{step:06d}.png", contact_sheet(images, texts, failures, columns=4))
        return rate


def make_validation(
    pipe: DiffusionPipeline, buckets: Sequence[Bucket], prior: Prior | None, config: TrainSettings, out: Path
) -> Validation:
    """What makes `out`/validation/step-<step>.png: images of the first captions, always with the same seeds.

    Args:
        pipe: the model.
        buckets: the images trained on, for their captions and sizes.
        prior: the prior; None for start noise.
        config: the settings, their start resolved: it is that of the images too.
        out: the run's folder.

    Returns:
        The validation, without references.

    Raises:
        OnbrandError: the start and the model's own 20 steps do not go together, or a ControlNet is trained and an image
            has no control image.
    """
    pairs = sorted(((record, one) for one in buckets for record in one.records), key=lambda pair: pair[0].index)
    if config.method == "controlnet":
        check_control_images([record for record, _ in pairs])
    captions = dict.fromkeys(
        (record.text, record.class_name, _controls(record, config), *(one.size if buckets[1:] else (None, None)))
        for record, one in pairs
    )
    cases = islice(cycle(captions), config.num_validation_images)
    requests = [
        Request(text, seed, name, conditioning=files, height=height, width=width)
        for seed, (text, name, files, height, width) in enumerate(cases)
    ]
    settings = SamplingSettings(start=config.start, k=config.k if config.start == "pca" else None)
    start = describe_start(config, make_objective(pipe.scheduler, config).start_timestep)
    return Validation(plan(pipe, prior, requests, settings, start), out / "validation")


def _controls(record: Record, config: TrainSettings) -> tuple[str, ...]:
    return (str(record.conditioning),) if config.method == "controlnet" else ()
