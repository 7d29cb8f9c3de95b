"""Optimisers by name: torch's AdamW, transformers' Adafactor, Prodigy and 8-bit AdamW from packages of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler as get_scheduler
from diffusers.training_utils import EMAModel as EMAModel
from torch import nn

from onbrand.errors import OnbrandError

PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}
"""Optimiser -> package, of those that onbrand[optimizers] brings."""


def optimizer_of(name: str) -> Callable[..., torch.optim.Optimizer]:
    """What makes the optimiser: adamw, adafactor, prodigy or adamw8bit.

    It takes (weights, lr, betas, eps, weight_decay), which each reads as its makers do: Adafactor (Shazeer and Stern
    2018) has its own for betas and eps, and neither scales the step by the weights nor makes up a learning rate;
    Prodigy (Mishchenko and Defazio 2023) multiplies the step it finds by lr, set as in diffusers' DreamBooth training.
    Raises OnbrandError if the package is not installed.
    """
    if name == "adafactor":
        return _adafactor
    if name not in PACKAGES:
        return _adamw
    try:
        package = import_module(PACKAGES[name])
    except ImportError as error:
        raise OnbrandError(
            "option",
            f"optimizer {name} is made by the package {PACKAGES[name]}, which cannot be imported here ({error}): "
            f"pip install {PACKAGES[name]}, or take adamw or adafactor",
        ) from error
    if name == "adamw8bit":
        adamw8bit: Callable[..., torch.optim.Optimizer] = package.optim.AdamW8bit
        return adamw8bit
    return partial(package.Prodigy, decouple=True, use_bias_correction=True, safeguard_warmup=True)


def _adamw(weights: list[nn.Parameter], lr: float, **options: Any) -> torch.optim.Optimizer:
    # one kernel for all weights, and under a loss scale no waiting for the GPU
    fused = True if weights and weights[0].device.type == "cuda" else None
    return torch.optim.AdamW(weights, lr, fused=fused, **options)


def _adafactor(
    weights: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(
        weights, lr, weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )
    return optimizer
