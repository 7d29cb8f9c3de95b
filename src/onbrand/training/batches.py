"""Positions in the run -> a batch: samples of the latents' posteriors, captions, noise, timesteps, x_start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core.prior import name_of
from onbrand.data.conditioning import read_conditioning
from onbrand.models.families import family_of
from onbrand.models.pipeline import to_x0
from onbrand.options.train import TrainSettings
from onbrand.training import rng
from onbrand.training.captions import Captions
from onbrand.training.objective import Batch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


class Batches:
    """The batch at given positions of the run: a pure function of them and the seed, whoever asks and in what order.

    Args:
        pipe: the model, on the device of the run.
        images: the images trained on.
        store: their latents.
        prior: the prior that gives their starts; None for start noise.
        config: the settings.
        timesteps: T, how many timesteps the model has.
        folder: the run's, for captions that do not fit in memory.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        images: Summary,
        store: Store,
        prior: Prior | None,
        config: TrainSettings,
        timesteps: int,
        folder: Path | None = None,
    ) -> None:
        self.pipe, self.images, self.store, self.config, self.timesteps = pipe, images, store, config, timesteps
        self.prior, self.device = prior, pipe.device
        tokens = config.method == "lora" and config.train_text_encoder
        self.captions = Captions(pipe, (record.text for record in images.used), tokens=tokens, folder=folder)
        self.reads_pooled = family_of(pipe).pooled_width(pipe.unet.config) is not None

    def control_images(self, records: Sequence[Record], flips: Sequence[bool] | None) -> Tensor:
        """(B, 3, H, W) in [0, 1]: the records' control images, mirrored if the images are."""
        size = self.store.key.resolution
        pairs = zip(records, flips or [False] * len(records), strict=True)
        return torch.stack([read_conditioning(record.conditioning or "", size, flip) for record, flip in pairs])

    def __call__(self, positions: Sequence[int]) -> Batch:
        """The batch at `positions` of the run.

        Args:
            positions: (B,) places in the run, whose first image has 0.

        Returns:
            The batch, on the pipeline's device.
        """
        seed, config = self.config.seed, self.config
        indices = rng.order(seed, len(self.images.used), positions)
        records = [self.images.used[i] for i in indices]
        flips = (rng.uniform(seed, "flip", positions) < 0.5).tolist() if self.store.key.flip else None
        mean, logvar = self.store.get([self.images.keys[i] for i in indices], flips)
        shape = mean.shape[1:]
        # a sample of the VAE's posterior: each epoch sees an image with other noise of the encoder
        sample = mean + (logvar / 2).exp() * rng.normal(seed, "posterior", positions, shape)
        x0 = self._on_device(to_x0(self.pipe, sample).float())
        noise = rng.normal(seed, "noise", positions, shape)
        if config.noise_offset:
            # one number per channel, the same at all places: offset noise
            noise = noise + config.noise_offset * rng.normal(seed, "offset", positions, (shape[0], 1, 1))
        perturbation = None
        if config.input_perturbation:
            sampling_noise = rng.normal(seed, "perturbation", positions, shape)
            perturbation = self._on_device(config.input_perturbation * sampling_noise)
        low, high = config.timestep_range or (0, self.timesteps - 1)
        hidden, pooled = self.captions([record.text for record in records])
        # only the network's caption is dropped, the start's is not: both branches of guidance meet the same latent
        dropped = rng.uniform(seed, "dropout", positions) < config.caption_dropout_rate
        hidden[dropped] = self.captions.empty
        network_pooled = None
        if self.reads_pooled:
            network_pooled = self._on_device(torch.where(dropped[:, None], self.captions.empty_pooled, pooled))
        coordinates = self._on_device(rng.normal(seed, "start", positions, (config.k,)))
        classes = [record.class_name for record in records]
        x_start = x_start_of(self.prior, config, x0, classes, self._on_device(pooled), coordinates)
        return Batch(
            x0=x0,
            x_start=x_start,
            noise=self._on_device(noise),
            timesteps=self._on_device(rng.timesteps(seed, positions, high + 1, low)),
            hidden=self._on_device(hidden),
            pooled=network_pooled,
            perturbation=perturbation,
            condition=self._on_device(self.control_images(records, flips)) if config.method == "controlnet" else None,
        )

    def _on_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the run's device.

        To a GPU it goes from pinned memory: a copy from other memory waits until the GPU has done all its earlier work.
        """
        pin = self.device.type == "cuda"
        return (tensor.pin_memory() if pin else tensor).to(self.device, non_blocking=pin)


class Mixture:
    """The batches of several buckets as one run's: each is of one bucket, whose turn comes as often as its share of the
    images is, and whose own positions go on where they were. Of one bucket its own.

    Args:
        parts: the batches of each bucket, the main one first.
        seed: the run's.
    """

    def __init__(self, parts: Sequence[Batches], seed: int) -> None:
        self.parts, self.seed = parts, seed
        self.counts = [len(part.images.used) for part in parts]

    def __call__(self, positions: range) -> Batch:
        """The batch at `positions` of the run, which begin at a multiple of their number."""
        if len(self.parts) == 1:
            return self.parts[0](positions)
        size = len(positions)
        which, before = rng.share(self.seed, self.counts, positions[0] // size)
        return self.parts[which](range(before * size, (before + 1) * size))


def mixture(
    pipe: DiffusionPipeline,
    buckets: Sequence[tuple[Store, Summary]],
    prior: Prior | None,
    config: TrainSettings,
    timesteps: int,
    folder: Path | None = None,
) -> Mixture:
    """The batches of a run. buckets: each one's latents and images, the main one first; else as `Batches`."""
    parts: list[Batches] = []
    for store, images in buckets:
        size = store.key.resolution
        # positions of two buckets are the same numbers: each has random numbers of its own
        seed = rng.seed_of(config.seed, name_of(size), 0) if parts else config.seed
        one = prior if prior is None or len(buckets) == 1 else prior.at(size)
        parts.append(Batches(pipe, images, store, one, replace(config, seed=seed), timesteps, folder))
    return Mixture(parts, config.seed)


def x_start_of(
    prior: Prior | None,
    config: TrainSettings,
    x0: Tensor,
    classes: Sequence[str],
    pooled: Tensor,
    coordinates: Tensor,
) -> Tensor:
    """The starts of clean latents (section 3.4; docs/concepts/method.md, section 5).

    Plain training has no start. It gets x0 itself, at gain zero.

    Args:
        prior: the prior that gives the starts; None for start noise.
        config: its start, draw and k are read.
        x0: (B, C, H, W) clean latents, scaled.
        classes: (B,) class of each.
        pooled: (B, E) text embeddings, for start text.
        coordinates: (B, k) standard normal, for start pca with draw sampled.

    Returns:
        x_start (B, C, H, W).
    """
    if prior is None or config.start == "noise":
        return x0
    if config.start == "mean":
        return prior.mean(classes).to(x0)
    if config.start == "text":
        rows = zip(classes, pooled.to(x0).split(1), strict=True)
        return torch.cat([prior.text[name].mean(prior.gaussians[name], text) for name, text in rows])
    if config.draw == "projected":
        return prior.project(x0, classes, config.k)
    rows = zip(classes, coordinates.to(x0).split(1), strict=True)
    return torch.cat([prior.gaussians[name].draw(1, config.k, noise=xi) for name, xi in rows])
