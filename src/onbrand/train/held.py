"""The loss on held-out pictures: always the same pictures under the same noise at the same timesteps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.data.latents import Summary

from . import draws
from .batches import Batches
from .config import TrainConfig
from .objective import Batch, Objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store

COUNT = 64
"""Triples of picture, noise and timestep; of fewer pictures, each is met again under other noise."""
SEED = draws.seed_of(0, "held", 0)
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
    pairs = [pairs[i] for i in sorted(draws.order(SEED, len(pairs), range(min(COUNT, len(pairs)))))]
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
