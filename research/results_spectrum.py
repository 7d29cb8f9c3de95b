"""Timesteps drawn where the brand's modes are decided, instead of uniformly: does it help?

Run by research/results.py --only spectrum, after --only rivals-lora8-1000, whose rows of the same names are uniform.
Publishes results-spectrum.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from onbrand.core import Prior
from onbrand.models.pipeline import load
from onbrand.training import rng
from results_catalogue import compared, prepared
from results_rivals import STARTS, chosen, row

TRAININGS = ("text-constant", "plain")
STEPS = 1000
DECIDED = (0.1, 10.0)
"""A mode of variance lambda is decided at t where r_t^2 lambda, its signal to noise, is between these."""


def share(prior: Prior, abars: Tensor) -> Tensor:
    """`(T,)`: of all classes' modes, how many are decided at each timestep; sums to 1.

    abars: `(T,)`, alphas_cumprod.
    """
    variances = torch.cat([gaussian.variances for gaussian in prior.gaussians.values()])
    signal = variances[:, None].double() * (abars / (1 - abars))
    counts = ((signal >= DECIDED[0]) & (signal <= DECIDED[1])).sum(0).double()
    return counts / counts.sum()


def drawn_from(shares: Tensor) -> Callable[..., Tensor]:
    """What takes the place of `rng.timesteps`: each of its timesteps moved to where `shares` `(T,)` have as much."""
    ends, uniform = shares.cumsum(0), rng.timesteps

    def timesteps(seed: int, positions: Sequence[int], total: int, first: int = 0) -> Tensor:
        places = (uniform(seed, positions, total, first).double() + 0.5) / total
        return torch.searchsorted(ends, places).clamp(max=total - 1)

    return timesteps


def run(out: Path) -> None:
    """Everything, from what is finished on."""
    rates = chosen(out)
    home = out / "spectrum"
    prepared(home)
    abars = load("tiny").scheduler.alphas_cumprod.double()
    timesteps = drawn_from(share(Prior.load(home / "brand"), abars))
    names = [
        row(training, ":lora8", rates[training], STEPS, start) for training in TRAININGS for start in STARTS[training]
    ]
    with patch.object(rng, "timesteps", timesteps):
        compared(home, "results-spectrum", names, {"Timesteps where the modes are decided": names})
