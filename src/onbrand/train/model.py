"""The model of a run: what learns, what it was started with, what is saved of it and how that is to be started."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onbrand.models import bundle
from onbrand.models import lora as lora_files
from onbrand.models.adapters import Denoiser, full, lora

from . import draws
from .config import TrainConfig
from .objective import Objective, make_objective
from .state import discard, load

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary


def finish(pipe: StableDiffusionPipeline, prior: Prior | None, config: TrainConfig, out: str | Path) -> Path:
    """Saves the last state in `out` as `out`/model, which StableDiffusionPipeline.from_pretrained (of a LoRA: its
    load_lora_weights) loads without onbrand, the prior beside it; the pipeline is left with these weights: their
    running mean, where there is one.

    `train` ends with it; call it to keep the model of a run that was stopped. Raises ValueError without a state.
    """
    out = Path(out)
    state = load(out / "state")
    if state is None:
        raise ValueError(f"a model is saved from a finished state; {out / 'state'} has none: train longer")
    weights = state.average or state.weights
    with torch.no_grad():
        for name, weight in denoiser_of(pipe, config).learned.items():
            weight.copy_(weights[name])
    draft = out / ".model.tmp"
    discard(draft)
    offset = describe(config, make_objective(pipe.scheduler, config).first)
    if config.method == "lora":
        lora_files.save(pipe, draft, prior, offset, bundle.name_of(pipe))
    else:
        bundle.save(pipe, draft, prior, offset)
    discard(out / "model")
    os.replace(draft, out / "model")
    return out / "model"


def denoiser_of(pipe: StableDiffusionPipeline, config: TrainConfig) -> Denoiser:
    """What learns, as `config.method` says; the same again on a pipeline that has been made ready for it."""
    if config.method == "full":
        return full(pipe)
    given = config.lora
    return lora(pipe, given.rank, given.alpha, given.targets, draws.seed_of(config.seed, "lora", 0))


def origin_of(
    pipe: StableDiffusionPipeline,
    pictures: Summary,
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
    objective: Objective,
) -> dict[str, str]:
    """Fingerprints of what a run is started with; the UNet's own weights are not in a state of a LoRA: they count."""
    model = [bundle.fingerprint(pipe.text_encoder), objective.abars.tolist(), _network(pipe)]
    return {
        "pictures": _digest([store.key.digest, pictures.keys, [(r.text, r.class_name) for r in pictures.used]]),
        "prior": prior.fingerprint if prior else "",
        "model": _digest(model if config.method == "full" else [*model, bundle.fingerprint(pipe.unet)]),
    }


def describe(config: TrainConfig, first: int) -> dict[str, str | int] | None:
    """How weights trained so are to be started, as bundle.save records it; none for plainly trained ones."""
    if config.offset == "none":
        return None
    k = config.k if config.offset == "pca" else 0
    return {
        "gain": config.gain,
        "kind": str(config.offset),
        "k": k,
        "first" if config.gain == "window" else "start": first,
    }


def _network(pipe: StableDiffusionPipeline) -> dict[str, object]:
    return {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
