"""A batch -> its loss: plain denoising training but for one line, the noise matched to the start (Eq. 2, 13-15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core.offset import constant, matched_noise, ratio, window
from onbrand.core.process import add_noise, target
from onbrand.models.scheduler import read
from onbrand.options.train import TrainConfig

if TYPE_CHECKING:
    from onbrand.models.scheduler import Schedule

SKIP = 50
"""The paper's S: the timesteps that each of its inference steps skips."""
STEPS = 20
"""The paper's inference steps."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass learns from; all on one device, float32 but for `timesteps` (int64)."""

    x0: Tensor
    """(B, C, H, W) clean latents, scaled."""
    x_start: Tensor
    """(B, C, H, W) start that generation would have for each of them."""
    noise: Tensor
    """(B, C, H, W) standard normal, before it is matched."""
    timesteps: Tensor
    """(B,) in 0..T-1."""
    hidden: Tensor
    """(B, L, E) hidden states of the captions; where the text encoder learns, their tokens, (B, L) int64."""
    perturbation: Tensor | None = None
    """(B, C, H, W) noise that x_t has and the target has not (Ning et al. 2023); none: no such noise."""
    condition: Tensor | None = None
    """(B, 3, H', W') control pictures in [0, 1], for a ControlNet; none: the network reads none."""


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, in and outside the window apart."""

    total: Tensor
    """() mean over the batch: what is minimised."""
    each: Tensor
    """(B,) the samples' own, weighted, without gradient."""
    within: Tensor
    """(B,) bool: which of them lie in the window."""

    @property
    def inside(self) -> float | None:
        """Mean over the samples in the window; none: no sample is."""
        return mean_where(self.each, self.within)

    @property
    def outside(self) -> float | None:
        """Mean over the samples outside the window; none: no sample is."""
        return mean_where(self.each, ~self.within)


@dataclass(frozen=True)
class Objective:
    """The loss as a function of the network and a batch. Made by `make_objective`."""

    abars: Tensor
    """(T,) float32."""
    gain: Tensor
    """(T,) float32, zero everywhere in plain training."""
    first: int
    """First timestep that counts as inside the window; under a constant gain, the one the start belongs to."""
    prediction_type: str
    """epsilon, v_prediction or sample."""
    min_snr: float | None = None
    """Min-SNR's gamma, or none."""

    def __call__(self, denoise: Callable[..., Tensor], batch: Batch) -> Loss:
        """The loss of `denoise(x_t (B, C, H, W), timesteps (B,), hidden (B, L, E)) -> (B, C, H, W)` on a batch; where
        the batch has control pictures, `denoise` is given them last."""
        t = batch.timesteps
        given = (batch.hidden,) if batch.condition is None else (batch.hidden, batch.condition)
        # Eq. 14: the only line that differs from plain training
        noise = matched_noise(batch.noise, batch.x0, batch.x_start, self.gain[t])
        # Eq. 13
        perturbed = noise if batch.perturbation is None else noise + batch.perturbation
        x_t = add_noise(batch.x0, perturbed, self.abars[t])
        goal = target(self.prediction_type, batch.x0, noise, self.abars[t])
        # Eq. 15
        each = (denoise(x_t, t, *given).float() - goal).square().flatten(1).mean(1)
        if self.min_snr is not None:
            each = each * self.weight(t)
        return Loss(each.mean(), each.detach(), t >= self.first)

    def weight(self, t: Tensor) -> Tensor:
        """(B,) Min-SNR's weights, 1 where the noise is matched at or after `first`: the start holds nothing of x0
        there, and for v the low SNR would all but remove those samples (epsilon has weight 1 there anyhow)."""
        snr = ratio(self.abars[t]).square()
        clipped = snr.clamp(max=self.min_snr)
        weight = {
            "epsilon": (self.min_snr / snr).clamp(max=1.0) if self.min_snr is not None else torch.ones_like(snr),
            "v_prediction": clipped / (snr + 1),
            "sample": clipped,
        }[self.prediction_type]
        matched = (t >= self.first) & (self.gain[t] > 0)
        return torch.where(matched, 1.0, weight)

    def to(self, device: torch.device) -> Objective:
        """The same, its curves on `device`."""
        gain, abars = self.gain.to(device), self.abars.to(device)
        return Objective(abars, gain, self.first, self.prediction_type, self.min_snr)


def make_objective(scheduler: object, config: TrainConfig) -> Objective:
    """The objective of `config` for the model whose diffusers scheduler this is.

    Raises ValueError for a scheduler that is not variance-preserving, for `config.first` and `config.loss.timesteps`
    outside 0..T-1, and for timesteps that end before the window.
    """
    schedule = read(scheduler, None)
    total = len(schedule.abars)
    first = config.first if config.first is not None else default_first(scheduler, schedule, config)
    if not 0 <= first < total:
        raise ValueError(f"first must be a training timestep of the model, 0..{total - 1}; got {first}")
    low, last = config.loss.timesteps or (0, total - 1)
    if last >= total:
        raise ValueError(
            f"loss.timesteps must be training timesteps of the model, 0..{total - 1}; got {[low, last]}: end at "
            f"{total - 1} or before"
        )
    if config.offset != "none" and config.gain == "window" and last < first:
        raise ValueError(
            f"the start is trained in the window, from t = {first} on; loss.timesteps {[low, last]} end before it, and "
            f"it would never be trained: end at {first} or later, or take offset none"
        )
    if config.offset == "none":
        gain = torch.zeros(total)
    elif config.gain == "window":
        gain = window(schedule.abars, first)
    else:
        gain = constant(schedule.abars, first)
    return Objective(schedule.abars.float(), gain, first, schedule.prediction_type, config.loss.min_snr)


def default_first(scheduler: object, schedule: Schedule, config: TrainConfig) -> int:
    """T - S for the window (and for plain training, whose log is split there); for the constant gain the first
    timestep of 20 steps of the model's own scheduler, 951 for Stable Diffusion 1.5."""
    total = len(schedule.abars)
    if config.gain == "window" or config.offset == "none":
        return max(total - SKIP, 0)
    return min(round(read(scheduler, STEPS).first), total - 1)


def mean_where(values: Tensor, mask: Tensor) -> float | None:
    """Mean of `values` (B,) where `mask` (B,) holds; none where it holds nowhere."""
    return float(values[mask].mean()) if bool(mask.any()) else None
