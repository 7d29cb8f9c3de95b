"""A batch -> its loss: plain denoising training but for one line, the noise matched to the start (Eq. 2, 13-15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core.offset import constant, matched_noise, ratio, window
from onbrand.core.process import add_noise, target
from onbrand.errors import OnbrandError
from onbrand.models.scheduler import read_scheduler
from onbrand.options.train import TrainSettings

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
    """(B, L, E) hidden states of the captions; if N text encoders learn, their tokens, (B, N, L) int64."""
    pooled: Tensor | None = None
    """(B, P) pooled captions; none: the network reads none."""
    perturbation: Tensor | None = None
    """(B, C, H, W) noise that is in x_t and not in the target (Ning et al. 2023); none: no such noise."""
    condition: Tensor | None = None
    """(B, 3, H', W') control images in [0, 1], for a ControlNet; none: the network reads none."""


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, inside and outside the window apart."""

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
    """(T,) float32, in (0, 1): abar of each timestep."""
    gain: Tensor
    """(T,) float32, zero everywhere in plain training."""
    start_timestep: int
    """First timestep that counts as inside the window; under a constant gain, the one that the start belongs to."""
    prediction_type: str
    """epsilon, v_prediction or sample."""
    snr_gamma: float | None = None
    """Min-SNR's gamma, or none."""

    def __call__(self, denoise: Callable[..., Tensor], batch: Batch) -> Loss:
        """The loss of a network on a batch.

        Args:
            denoise: the network, called as `denoise(x_t (B, C, H, W), timesteps (B,), hidden (B, L, E))`, and with
                pooled= (B, P) and condition= (B, 3, H', W'), the control images, if the batch has them. It returns
                (B, C, H, W).
            batch: the batch.

        Returns:
            The loss of each sample, and their mean.
        """
        t = batch.timesteps
        beside = {"pooled": batch.pooled, "condition": batch.condition}
        beside = {name: tensor for name, tensor in beside.items() if tensor is not None}
        # Eq. 14: the only line that differs from plain training
        noise = matched_noise(batch.noise, batch.x0, batch.x_start, self.gain[t])
        # Eq. 13
        input_noise = noise if batch.perturbation is None else noise + batch.perturbation
        x_t = add_noise(batch.x0, input_noise, self.abars[t])
        y = target(self.prediction_type, batch.x0, noise, self.abars[t])
        # Eq. 15
        each = (denoise(x_t, t, batch.hidden, **beside).float() - y).square().flatten(1).mean(1)
        if self.snr_gamma is not None:
            each = each * self.weight(t)
        return Loss(each.mean(), each.detach(), t >= self.start_timestep)

    def weight(self, t: Tensor) -> Tensor:
        """Min-SNR's weights (Hang et al. 2023).

        They are 1 for samples whose noise is matched at or after `start_timestep`: the start holds nothing of x0 there,
        and for v the low SNR would all but remove those samples. For epsilon the weight is 1 there anyhow.

        Args:
            t: (B,) timesteps.

        Returns:
            (B,) weights, 0 or more.
        """
        snr = ratio(self.abars[t]).square()
        min_snr = snr.clamp(max=self.snr_gamma)
        weight = {
            "epsilon": (self.snr_gamma / snr).clamp(max=1.0) if self.snr_gamma is not None else torch.ones_like(snr),
            "v_prediction": min_snr / (snr + 1),
            "sample": min_snr,
        }[self.prediction_type]
        mask = (t >= self.start_timestep) & (self.gain[t] > 0)
        return torch.where(mask, 1.0, weight)

    def to(self, device: torch.device) -> Objective:
        """The same, its curves on `device`."""
        gain, abars = self.gain.to(device), self.abars.to(device)
        return Objective(abars, gain, self.start_timestep, self.prediction_type, self.snr_gamma)


def make_objective(scheduler: object, config: TrainSettings) -> Objective:
    """The objective of a run.

    Args:
        scheduler: the model's scheduler, of diffusers.
        config: the settings, their start resolved.

    Returns:
        The objective, its curves on the CPU.

    Raises:
        OnbrandError: the scheduler is not variance-preserving, start_timestep or timestep_range is outside 0..T-1, or
            timestep_range ends before the window.
    """
    schedule = read_scheduler(scheduler, None)
    total = len(schedule.abars)
    start_timestep = config.start_timestep
    if start_timestep is None:
        start_timestep = default_start_timestep(scheduler, schedule, config)
    if not 0 <= start_timestep < total:
        raise OnbrandError(
            "training",
            f"start_timestep must be a training timestep of the model, 0..{total - 1}; got {start_timestep}: leave it "
            "out for the default",
        )
    low, last = config.timestep_range or (0, total - 1)
    if last >= total:
        raise OnbrandError(
            "training",
            f"timestep_range must be training timesteps of the model, 0..{total - 1}; got {[low, last]}: end at "
            f"{total - 1} or before",
        )
    if config.start != "noise" and config.gain == "window" and last < start_timestep:
        raise OnbrandError(
            "training",
            f"the start is trained in the window, from t = {start_timestep} on; timestep_range {[low, last]} ends "
            f"before it, and it would never be trained: end at {start_timestep} or later, or take start noise",
        )
    if config.start == "noise":
        gain = torch.zeros(total)
    elif config.gain == "window":
        gain = window(schedule.abars, start_timestep)
    else:
        gain = constant(schedule.abars, start_timestep)
    return Objective(schedule.abars.float(), gain, start_timestep, schedule.prediction_type, config.snr_gamma)


def default_start_timestep(scheduler: object, schedule: Schedule, config: TrainSettings) -> int:
    """The start_timestep of a run whose settings name none.

    For the window, and for plain training, whose log is split there: T - S. For the constant gain: the first of 20
    timesteps of the model's own scheduler, 951 for Stable Diffusion 1.5.
    """
    total = len(schedule.abars)
    if config.gain == "window" or config.start == "noise":
        return max(total - SKIP, 0)
    return min(round(read_scheduler(scheduler, STEPS).first), total - 1)


def mean_where(values: Tensor, mask: Tensor) -> float | None:
    """Mean of `values` (B,) over the samples that `mask` (B,) marks; none if it marks none."""
    return float(values[mask].mean()) if bool(mask.any()) else None
