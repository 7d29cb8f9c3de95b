"""Eq. 8 and 10-15: the start x_init, and the one substitution of the noise that trains for it."""

from typing import Protocol

import torch
from torch import Tensor

from onbrand.core.process import add_noise, expand, same_shape, weights


class HasAbars(Protocol):
    """Anything with diffusers' `alphas_cumprod`."""

    alphas_cumprod: Tensor
    """`(T,)` in [0, 1], falling."""


def ratio(abar: Tensor) -> Tensor:
    """r = sqrt(abar / (1 - abar)), the signal-to-noise amplitude; any shape, abar in [0, 1)."""
    return (abar / (1 - abar)).sqrt()


def window(schedule: Tensor | HasAbars, first: float) -> Tensor:
    """The paper's gain (Eq. 14, 15): r_t for t >= first, 0 below. With it, add_noise(x0, matched, t) is Eq. 13.

    schedule: alphas_cumprod `(T,)` or anything that has it; first: training timestep 0..T-1 (the paper's T - S).
    Returns `(T,)` float32, to be indexed with timesteps. Raises ValueError where first is outside the schedule.
    """
    r, first = _ratios(schedule, first, "first")
    r[:first] = 0
    return r.float()


def constant(schedule: Tensor | HasAbars, start: float) -> Tensor:
    """The constant gain (METHOD.md section 5, not the paper's): min(r_t, r_start) at every t.

    x_t = c_t x0 + k_t x_start + sqrt(1 - abar_t) eps then holds nothing of x0 at t = start, and the noise to be
    predicted is one vector along a whole deterministic trajectory.
    schedule: as in window; start: the first timestep of inference, 0..T-1. Returns `(T,)` float32.
    Raises ValueError where start is outside the schedule.
    """
    r, start = _ratios(schedule, start, "start")
    return r.minimum(r[start]).float()


def matched_noise(noise: Tensor, x0: Tensor, x_start: Tensor, gain: Tensor | float) -> Tensor:
    """eps_new = eps + g (x_start - x0) (Eq. 12, 14): put it where the noise was, in add_noise and in the target.

    noise, x0, x_start: `(B, C, H, W)`; gain: `(B,)`, that is gain[timesteps], or a number. Computed in float32,
    returned in noise's dtype on its device. Raises ValueError where the shapes differ.
    """
    same_shape(noise=noise, x0=x0, x_start=x_start)
    drift = x_start.to(noise.device, torch.float32) - x0.float()
    return (noise.float() + expand(torch.as_tensor(gain), drift) * drift).to(noise.dtype)


def x_init(x_start: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """sqrt(abar) x_start + sqrt(1 - abar) eps (Eq. 8, 10), at the abar of the first inference timestep.

    x_start, noise: `(B, C, H, W)`; abar: float or `(B,)` in [0, 1]. A pipeline's `latents=` is this over the
    scheduler's init_noise_sigma (times its own scale where it works in sigmas): models/schedule does that.
    """
    return add_noise(x_start, noise, abar)


def handoff(x: Tensor, x_next: Tensor, noise: Tensor, abar: float, abar_next: float) -> Tensor:
    """The exact hand-off (METHOD.md section 5): after the window's step, the noise that was drawn, not the estimate.

    x -> x_next: one deterministic DDIM step from abar to abar_next, `(B, C, H, W)`; noise: the eps of x_init. x0_hat
    follows from x and x_next alone; returns sqrt(abar_next) x0_hat + sqrt(1 - abar_next) noise in x_next's dtype.
    Solving for x0_hat magnifies rounding (about 35 times at 951 -> 901): keep the states in float32 where you can.
    Raises ValueError where the shapes differ or the two abars are one.
    """
    same_shape(x=x, x_next=x_next, noise=noise)
    x, out, noise = x.float(), x_next.float(), noise.to(x_next.device, torch.float32)
    signal, spread = weights(float(abar), x)
    signal_next, spread_next = weights(float(abar_next), x)
    determinant = signal * spread_next - signal_next * spread
    if abar == abar_next:
        raise ValueError(f"a step goes from one abar to another: got {abar} twice; pass the two timesteps' abars")
    x0_hat = (spread_next * x - spread * out) / determinant
    return (signal_next * x0_hat + spread_next * noise).to(x_next.dtype)


def _ratios(schedule: Tensor | HasAbars, timestep: float, name: str) -> tuple[Tensor, int]:
    """r `(T,)` in float64 and the timestep as an index into it."""
    abars = schedule if isinstance(schedule, Tensor) else schedule.alphas_cumprod
    if abars.ndim != 1 or not bool(((abars >= 0) & (abars < 1)).all()):
        raise ValueError(
            f"a schedule is alphas_cumprod, (T,) numbers in [0, 1): got shape {tuple(abars.shape)}; "
            "pass the scheduler or its alphas_cumprod"
        )
    if timestep != int(timestep) or not 0 <= timestep < len(abars):
        raise ValueError(
            f"{name} is a training timestep, a whole number in 0..{len(abars) - 1}: got {timestep}; "
            "round it, or read it off the scheduler's own timesteps"
        )
    return ratio(abars.double().cpu()), int(timestep)
