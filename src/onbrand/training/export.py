"""The model of a run: what learns, what it was started with, what is saved of it and how that is to be started."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onbrand.models import lora as lora_files
from onbrand.models import pipeline
from onbrand.models.controlnet import TOGETHER, nets_of
from onbrand.models.denoiser import Denoiser, controlnet, full, lora
from onbrand.models.scheduler import with_prediction
from onbrand.options.train import TrainConfig
from onbrand.training import rng
from onbrand.training.objective import Objective, make_objective
from onbrand.training.state import discard, load

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


UNET = ".unet"
"""In a run's folder: what `keep` saves."""


def finish(pipe: StableDiffusionPipeline, prior: Prior | None, config: TrainConfig, out: str | Path) -> Path:
    """Saves the last state in `out` as `out`/model, which StableDiffusionPipeline.from_pretrained (of a LoRA: its
    load_lora_weights; of a ControlNet: StableDiffusionControlNetPipeline.from_pretrained) loads without onbrand, the
    prior beside it; the pipeline is left with these weights: their running mean, where there is one.

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
        lora_files.save(pipe, draft, prior, offset, pipeline.name_of(pipe))
    else:
        pipeline.save(pipe, draft, prior, offset)
        if (out / UNET).exists():
            discard(draft / "unet")
            os.replace(out / UNET, draft / "unet")
        if config.method == "controlnet":
            (draft / TOGETHER).parent.mkdir(exist_ok=True)
            (draft / TOGETHER).write_text(json.dumps({"unet": config.controlnet.unet}) + "\n")
    discard(out / "model")
    os.replace(draft, out / "model")
    return out / "model"


def keep(pipe: StableDiffusionPipeline, config: TrainConfig, out: Path) -> None:
    """Saves the UNet beside a ControlNet as it is, if it does not learn: the one in memory is to be kept in half
    precision, and `finish` puts this one into the model."""
    if config.method == "controlnet" and not config.controlnet.unet:
        draft = out / f"{UNET}.tmp"
        discard(draft)
        pipe.unet.save_pretrained(draft)
        discard(out / UNET)
        os.replace(draft, out / UNET)


def teach(pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """Gives the pipeline the scheduler of what `config.prediction` says, in place; none: its own stays."""
    if config.prediction is not None:
        pipe.scheduler = with_prediction(pipe.scheduler, config.prediction, "trailing")


def denoiser_of(pipe: StableDiffusionPipeline, config: TrainConfig) -> Denoiser:
    """What learns, as `config.method` says; the same again on a pipeline that has been made ready for it."""
    if config.method != "controlnet" and nets_of(pipe):
        raise ValueError(
            f"the model has a ControlNet, and method {config.method} would leave it out: take method controlnet, with "
            "controlnet.unet where the UNet is to learn too"
        )
    if config.method != "lora" and getattr(pipe.text_encoder, "peft_config", None):
        raise ValueError("the model's text encoder has a LoRA beside it: `onbrand merge` it first, or train a LoRA")
    if config.method == "full":
        return full(pipe)
    if config.method == "controlnet":
        return controlnet(pipe, config.controlnet.unet)
    given = config.lora
    seed = rng.seed_of(config.seed, "lora", 0)
    return lora(pipe, given.rank, given.alpha, given.targets, seed, given.text_encoder)


def origin_of(
    pipe: StableDiffusionPipeline,
    pictures: Summary,
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
    objective: Objective,
) -> dict[str, str]:
    """Fingerprints of what a run is started with; the UNet's own weights count where they do not learn: no state has
    them."""
    model = [pipeline.fingerprint(pipe.text_encoder), objective.abars.tolist(), _network(pipe.unet)]
    model += [_network(net) for net in nets_of(pipe)]
    stays = config.method == "lora" or (config.method == "controlnet" and not config.controlnet.unet)
    return {
        "pictures": _digest([store.key.digest, pictures.keys, [_told(r, config) for r in pictures.used]]),
        "prior": prior.fingerprint if prior else "",
        "model": _digest([*model, pipeline.fingerprint(pipe.unet)] if stays else model),
    }


def describe(config: TrainConfig, first: int) -> dict[str, str | int] | None:
    """How weights trained so are to be started, as pipeline.save records it; none for plainly trained ones."""
    if config.offset == "none":
        return None
    k = config.k if config.offset == "pca" else 0
    return {
        "gain": config.gain,
        "kind": str(config.offset),
        "k": k,
        "first" if config.gain == "window" else "start": first,
    }


def _told(record: Record, config: TrainConfig) -> tuple[str, ...]:
    """What a run is told of a picture beside the picture; a control picture by its bytes."""
    if config.method != "controlnet":
        return record.text, record.class_name
    return record.text, record.class_name, hashlib.sha256(Path(str(record.conditioning)).read_bytes()).hexdigest()


def _network(network: Any) -> dict[str, object]:
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
