"""The model of a run: what learns, what it was started with, what is saved of it and which start it needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onbrand.data.images import read_bytes
from onbrand.errors import OnbrandError
from onbrand.io import digest, whole_folder, write_text
from onbrand.models import lora as lora_files
from onbrand.models import pipeline
from onbrand.models.controlnet import TOGETHER, nets_of
from onbrand.models.denoiser import Denoiser, controlnet, full, lora
from onbrand.models.families import encoders_of
from onbrand.models.scheduler import with_options, with_prediction
from onbrand.options.train import TrainSettings
from onbrand.training import rng
from onbrand.training.captions import remove_captions
from onbrand.training.objective import Objective, make_objective
from onbrand.training.state import load_state

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record


UNET = ".unet"
"""In a run's folder: what `keep_unet` saves."""


def save_model(pipe: DiffusionPipeline, prior: Prior | None, config: TrainSettings, out: str | Path) -> Path:
    """Save the last state in `out` as `out`/model, and the prior beside it.

    `train` ends with it; call it to keep the model of a run that was stopped. The pipeline then holds the weights that
    are saved: their EMA, if there is one. diffusers loads them without onbrand: a model by
    DiffusionPipeline.from_pretrained, a LoRA by its load_lora_weights.

    Args:
        pipe: the pipeline that was trained.
        prior: the prior of the run.
        config: the settings of the run.
        out: the run's folder.

    Returns:
        The model's folder, `out`/model.

    Raises:
        OnbrandError: `out` holds no state.
    """
    out = Path(out)
    state = load_state(out / "state")
    if state is None:
        raise OnbrandError(
            "training",
            f"a model is saved from a finished state; {out / 'state'} has none: train longer, or set a "
            "smaller checkpointing_steps",
        )
    weights = state.ema or state.weights
    with torch.no_grad():
        for name, weight in denoiser_of(pipe, config).learned.items():
            weight.copy_(weights[name])
    start = describe_start(config, make_objective(pipe.scheduler, config).start_timestep)
    with whole_folder(out / "model") as draft:
        if config.method == "lora":
            lora_files.save(pipe, draft, prior, start, pipeline.name_of(pipe))
        else:
            pipeline.save(pipe, draft, prior, start)
            if (out / UNET).exists():
                shutil.rmtree(draft / "unet")
                os.replace(out / UNET, draft / "unet")
            if config.method == "controlnet":
                write_text(draft / TOGETHER, json.dumps({"unet": config.train_unet}) + "\n")
    remove_captions(out)
    return out / "model"


def keep_unet(pipe: DiffusionPipeline, config: TrainSettings, out: Path) -> None:
    """Save the UNet beside a ControlNet as it is, if it does not learn.

    The UNet in memory will be in half precision. `save_model` puts the saved one into the model.
    """
    if config.method == "controlnet" and not config.train_unet:
        with whole_folder(out / UNET) as draft:
            pipe.unet.save_pretrained(draft)


def set_scheduler(pipe: DiffusionPipeline, config: TrainSettings) -> None:
    """Give the pipeline the scheduler of `config.scheduler` and `config.prediction_type`, in place; none: its own."""
    if config.scheduler is not None:
        pipe.scheduler = with_options(pipe.scheduler, config.scheduler)
    if config.prediction_type is not None:
        pipe.scheduler = with_prediction(pipe.scheduler, config.prediction_type, "trailing")


def denoiser_of(pipe: DiffusionPipeline, config: TrainSettings) -> Denoiser:
    """What learns under `config.method`.

    Called again on the same pipeline, it finds the same weights.

    Args:
        pipe: the pipeline; a LoRA is put into it.
        config: the settings.

    Returns:
        The network as the loop sees it.

    Raises:
        OnbrandError: the pipeline has a ControlNet or a LoRA that the method would leave out.
    """
    if config.method != "controlnet" and nets_of(pipe):
        raise OnbrandError(
            "training",
            f"the model has a ControlNet, and method {config.method} would leave it out: take method controlnet, with "
            "train_unet if the UNet is to learn too",
        )
    if config.method != "lora" and any(getattr(one, "peft_config", None) for one in encoders_of(pipe).values()):
        raise OnbrandError(
            "training", "the model's text encoder has a LoRA beside it: `onbrand merge` it first, or take method lora"
        )
    if config.method == "full":
        return full(pipe)
    if config.method == "controlnet":
        return controlnet(pipe, config.train_unet)
    seed = rng.seed_of(config.seed, "lora", 0)
    return lora(pipe, config.rank, config.lora_alpha, config.target_modules, seed, config.train_text_encoder)


def origin_of(
    pipe: DiffusionPipeline,
    buckets: Sequence[tuple[Store, Summary]],
    prior: Prior | None,
    config: TrainSettings,
    objective: Objective,
) -> dict[str, str]:
    """Fingerprints of what a run is started with: images, prior, model.

    The UNet's own weights count if they do not learn: no state has them.

    Args:
        pipe: the model before the first step.
        buckets: the latents and the images trained on, of each size.
        prior: the prior; None for start noise.
        config: the settings.
        objective: the objective of the run, for its noise schedule.

    Returns:
        images, prior, model -> sha256 in hex; "" without a prior.
    """
    encoders = [pipeline.fingerprint(encoder) for encoder in encoders_of(pipe).values()]
    networks = [*encoders, objective.abars.tolist(), _architecture(pipe.unet)]
    networks += [_architecture(net) for net in nets_of(pipe)]
    frozen = config.method == "lora" or (config.method == "controlnet" and not config.train_unet)
    digests = [
        _digest([store.key.digest, images.keys, [_labels(r, config) for r in images.used]]) for store, images in buckets
    ]
    return {
        "images": digests[0] if len(digests) == 1 else _digest(digests),
        "prior": " ".join(one.fingerprint for one in prior.all) if prior else "",
        "model": _digest([*networks, pipeline.fingerprint(pipe.unet)] if frozen else networks),
    }


def describe_start(config: TrainSettings, start_timestep: int) -> dict[str, str | int] | None:
    """The start that weights trained so need, as pipeline.save records it; none after plain training."""
    if config.start == "noise":
        return None
    k = config.k if config.start == "pca" else 0
    return {"gain": config.gain, "start": str(config.start), "k": k, "start_timestep": start_timestep}


def _labels(record: Record, config: TrainSettings) -> tuple[str, ...]:
    """What a run reads beside an image: caption, class, and a control image by its bytes."""
    if config.method != "controlnet":
        return record.text, record.class_name
    return record.text, record.class_name, digest(read_bytes(str(record.conditioning)))


def _architecture(network: Any) -> dict[str, object]:
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def _digest(value: object) -> str:
    return digest(json.dumps(value, sort_keys=True, default=str).encode())
