"""Schedulers made from others: another class, spacing or prediction, zero terminal SNR, another end; restored."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch


def with_options(
    scheduler: Any, name: str | None = None, spacing: str | None = None, karras: bool | None = None
) -> Any:
    """A new scheduler of class `name` (as "DPMSolverMultistepScheduler"; the same class if None), made from
    `scheduler`'s config, with this timestep spacing ("leading" | "trailing" | "linspace") and Karras sigmas.

    None keeps what the config spells out; what it does not becomes the new class's default, as in diffusers'
    `from_config` (SD1.5's config names no spacing: leading in PNDM and DDIM, linspace in DPM-Solver++).
    ValueError for an unknown class, an option the class does not take, and a class that cannot follow this model's
    noise schedule (zero terminal SNR in one that has no `rescale_betas_zero_snr`).
    """
    if name is not None and "torchsde" in getattr(getattr(diffusers, name, None), "_backends", ()):
        raise ValueError(f"{name} needs the package torchsde, which is not installed: pip install torchsde")
    made = type(scheduler) if name is None else _class(name, getattr(scheduler, "compatibles", []))
    options: dict[str, Any] = {}
    if spacing is not None:
        if spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"timestep spacing must be leading, trailing or linspace, got {spacing!r}")
        options["timestep_spacing"] = spacing
    if karras is not None:
        options["use_karras_sigmas"] = karras
    for option, value in options.items():
        if option not in inspect.signature(made).parameters:
            raise ValueError(f"{made.__name__} takes no {option} (asked for {value!r}): leave it out")
    new = made.from_config(scheduler.config, **options)
    abars = getattr(new, "alphas_cumprod", None)
    if abars is not None and hasattr(scheduler, "alphas_cumprod"):
        old = scheduler.alphas_cumprod.to(abars)
        if old.shape != abars.shape or not torch.allclose(old, abars, atol=1e-5):
            raise ValueError(
                f"{made.__name__} cannot follow this model's noise schedule (of {type(scheduler).__name__}): "
                "its alphas_cumprod differ; take a class with the same options, as rescale_betas_zero_snr"
            )
    return new


def rescaled(scheduler: Any) -> Any:
    """A scheduler like this one whose noise schedule ends in zero SNR (Lin et al. 2023, arXiv 2305.08891).

    ValueError where its class has no `rescale_betas_zero_snr`.
    """
    if "rescale_betas_zero_snr" not in inspect.signature(type(scheduler)).parameters:
        raise ValueError(f"{type(scheduler).__name__} has no rescale_betas_zero_snr: take a model with DDIM")
    return type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=True)


def with_terminal(scheduler: Any, abar: float) -> Any:
    """A scheduler like this one whose abar ends at `abar` in (0, 1), sqrt(abar) rescaled linearly, its first one kept
    (Lin et al. 2023's rescaling with another end: the paper's smaller alpha_T). ValueError for another abar."""
    if not 0 < abar < 1:
        raise ValueError(f"the last abar lies in (0, 1): got {abar}; for 0 take the schedule of zero terminal SNR")
    root = scheduler.alphas_cumprod.double().sqrt()
    moved = root[0] + (root - root[0]) * (root[0] - abar**0.5) / (root[0] - root[-1])
    new = moved.square()
    betas = 1 - new / torch.cat([torch.ones(1, dtype=torch.float64), new[:-1]])
    return type(scheduler).from_config(scheduler.config, trained_betas=betas.tolist())


def with_prediction(scheduler: Any, prediction_type: str, spacing: str) -> Any:
    """A scheduler like this one for a network that predicts something else, its timesteps spaced otherwise."""
    options = {"prediction_type": prediction_type, "timestep_spacing": spacing}
    return type(scheduler).from_config(scheduler.config, **options)


def saved(model: Path) -> Any:
    """The scheduler of a model's folder in diffusers' layout."""
    config = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    return _class(config["_class_name"]).from_config(config)


def restore(record: Mapping[str, Any]) -> Any:
    """The scheduler whose class is record["class"] and whose config is the rest of `record`."""
    return _class(record["class"]).from_config({key: value for key, value in record.items() if key != "class"})


def _class(name: str, known: Sequence[type] = ()) -> Any:
    """diffusers' scheduler class `name`; ValueError, listing those `known`, if there is none."""
    made = getattr(diffusers, name, None)
    if not isinstance(made, type) or not issubclass(made, diffusers.SchedulerMixin):
        listed = ", ".join(sorted(kind.__name__ for kind in known)) or "another"
        raise ValueError(f"no scheduler class {name!r} in diffusers {diffusers.__version__}: take {listed}")
    return made
