"""Whether the parts of a model go together, and are all that it asks for: said as it is opened, not in its midst."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onbrand.errors import OnbrandError, quote
from onbrand.models.families import Family
from onbrand.models.weights import first_line

LONGEST = 100_000
"""Timesteps of a noise schedule: Stable Diffusion has 1,000."""
SCALES = 1e-3, 1e3
"""Between these lies the scale of every autoencoder's latents; beyond, images would be grey or none at all."""
FEWEST = 3
"""Tokens that a tokenizer takes: a word between the two that every text begins and ends with."""


def check_parts(family: Family, parts: Mapping[str, Any], path: Path) -> None:
    """OnbrandError, with what is wrong, unless the parts of the model at `path` go together and need nothing else than
    latents, timesteps and text. A tokenizer's length is brought down to what the text encoder takes, with a warning.
    """
    unet, vae, encoders = parts["unet"], parts["vae"], [parts[name] for name in family.encoders]
    where, config = path.absolute(), unet.config
    channels = vae.config.latent_channels
    if config.in_channels != channels:
        raise OnbrandError(
            "model",
            f"the UNet must take the VAE's latents alone ({channels} channels); that of {where} takes "
            f"{config.in_channels}, as inpainting and other conditioned models do: take one that makes images of text",
        )
    width, hidden = config.cross_attention_dim, sum(encoder.config.hidden_size for encoder in encoders)
    if width != hidden:
        raise OnbrandError(
            "model",
            f"the UNet of {where} attends to text of {width} numbers a token; its text encoder gives {hidden}: take "
            "both from one model",
        )
    pooled = family.pooled_width(config)
    if pooled is not None and pooled != (given := getattr(encoders[-1].config, "projection_dim", 0)):
        raise OnbrandError(
            "model",
            f"the UNet of {where} reads pooled text of {pooled} numbers; its {family.encoders[-1]} gives {given}: take "
            "both from one model",
        )
    for name, encoder in zip(family.tokenizers, encoders, strict=True):
        _check_tokenizer(parts[name], encoder, where / name)
    for name, value in (
        ("scaling_factor", vae.config.scaling_factor),
        ("shift_factor", vae.config.shift_factor or 0.0),
    ):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= SCALES[1]
        if not is_number or (name == "scaling_factor" and value < SCALES[0]):
            raise OnbrandError(
                "model",
                f"{where / 'vae' / 'config.json'}: {name} must be a number, 0.18215 for the scaling_factor of Stable "
                f"Diffusion 1 and 2; got {quote(value)}: write it there",
            )
    _check_scheduler(parts["scheduler"], where / "scheduler" / "scheduler_config.json")
    scheduler = parts["scheduler"].config
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("prediction_type") == "epsilon":
        warnings.warn(
            f"{where}: its scheduler ends in pure noise (rescale_betas_zero_snr), from which a network that predicts "
            "epsilon tells nothing; if the weights predict v, write prediction_type v_prediction into "
            "scheduler/scheduler_config.json",
            stacklevel=2,
        )


def _check_scheduler(scheduler: Any, file: Path) -> None:
    """OnbrandError, with the file that its settings stand in, for a noise schedule that is none, or settings under
    which not one step can be made: that is tried. Kinds without alphas_cumprod are refused when one is asked for."""
    abars, count = getattr(scheduler, "alphas_cumprod", None), scheduler.config.get("num_train_timesteps")
    if not isinstance(abars, Tensor):
        return
    if not _is_schedule(abars):
        raise OnbrandError(
            "model",
            f"{file}: its betas give no noise schedule, whose alphas_cumprod fall from below 1 towards 0: copy it anew",
        )
    if count is not None and count != len(abars):
        raise OnbrandError(
            "model", f"{file}: num_train_timesteps is {count}, and its trained_betas are {len(abars)}: copy it anew"
        )
    live, latents = copy.deepcopy(scheduler), torch.zeros(1, 4, 8, 8)
    drawn = "generator" in inspect.signature(live.step).parameters  # not from the generator that is everyone's
    options = {"generator": torch.Generator().manual_seed(0)} if drawn else {}
    try:
        with warnings.catch_warnings(action="ignore"):
            live.set_timesteps(min(10, len(abars)))
            live.step(latents, live.timesteps[0], live.scale_model_input(latents, live.timesteps[0]), **options)
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise whatever they stumble over
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise OnbrandError("model", f"{file}: its settings do not work ({reason}): copy it anew") from error


def _is_schedule(abars: Tensor) -> bool:
    """Whether alphas_cumprod are some, fall within [0, 1], leave 1 after the first timestep at the latest, and reach 0
    at the last one if at all."""
    inside = len(abars) > 0 and bool(((abars >= 0) & (abars <= 1)).all()) and bool((abars[1:] < 1).all())
    return inside and bool((abars.diff() <= 0).all()) and bool((abars[:-1] > 0).all())


def check_length(config: Mapping[str, Any], path: Path) -> None:
    """OnbrandError for a scheduler's configuration of so many timesteps that they would fill the memory, or of none."""
    count = config.get("num_train_timesteps", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= LONGEST:
        raise OnbrandError(
            "model",
            f"{path.absolute() / 'scheduler' / 'scheduler_config.json'}: num_train_timesteps must be a whole number "
            f"from 1 to {LONGEST}, 1000 of Stable Diffusion; got {quote(count)}: write it there",
        )


def check_unet(config: Mapping[str, Any], family: Family, path: Path) -> None:
    """OnbrandError for a UNet's configuration that asks for other inputs than its family's, or for no size."""
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(key) != family.asks.get(key):
            raise OnbrandError(
                "model",
                f"{path.absolute() / 'unet' / 'config.json'}: {key} of {family.name} is {family.asks.get(key)}; got "
                f"{config.get(key)}, a network with other inputs: take a model that makes images of text alone",
            )
    size = config.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):  # noqa: PLR2004
        raise OnbrandError(
            "model",
            f"{path.absolute() / 'unet' / 'config.json'}: sample_size must be the side of its latents, 64 of Stable "
            f"Diffusion 1; got {quote(size)}: write it there",
        )


STUDENTS = re.compile(r"turbo|lightning|lcm|tcd|hyper-?sd|dmd2?", re.IGNORECASE)
"""Names of models and LoRAs that were distilled to a few steps."""


def warn_of_students(names: Sequence[str | Path], scheduler: Any, unet_config: Mapping[str, Any]) -> None:
    """Warn of a model or LoRA distilled to a few steps, by its name, its scheduler or its UNet."""
    marks = [Path(name).name for name in names if STUDENTS.search(Path(name).name)]
    marks += [name for name in (type(scheduler).__name__,) if name.startswith(("LCM", "TCD"))]
    marks += ["time_cond_proj_dim of its UNet"] if unet_config.get("time_cond_proj_dim") else []
    if marks:
        warnings.warn(
            f"this model seems to be distilled to a few steps ({marks[0]}): its student learnt from pure noise at the "
            "last timestep, where a start gains little, and training undoes what it learnt; take the model that it was "
            "distilled from to train, and check a start on a few images",
            stacklevel=3,
        )


def _check_tokenizer(tokenizer: Any, encoder: Any, where: Path) -> None:
    """OnbrandError for a tokenizer without words, without room for one, or with more than the text encoder knows."""
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int) or length < FEWEST:
        raise OnbrandError(
            "model",
            f"{where / 'tokenizer_config.json'}: model_max_length must be a whole number from {FEWEST} "
            f"on, 77 of Stable Diffusion; got {quote(length)}: write it there",
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise OnbrandError(
            "model",
            f"{where} has no words: it needs vocab.json and merges.txt, or tokenizer.json; copy it anew",
        )
    known, room = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if len(tokenizer) > known:
        raise OnbrandError(
            "model",
            f"the tokenizer {where} has {len(tokenizer)} tokens, its text encoder knows {known}: take both from one "
            "model",
        )
    if length > room:
        says = f"takes {length} tokens" if length < 10**9 else "does not say how many tokens it takes"
        warnings.warn(f"the tokenizer {where} {says}; its text encoder takes {room}: so many are used", stacklevel=2)
        tokenizer.model_max_length = room
