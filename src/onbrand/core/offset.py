"""Eq. 8 and 10-15: the start x_init, and the one substitution of the noise that trains for it."""

from typing import Protocol

import torch
from torch import Tensor

from onbrand.core.process import add_noise, expand, same_shape, weights
from onbrand.errors import OnbrandError


class HasAbars(Protocol):
    """Anything with diffusers' `alphas_cumprod`."""

    alphas_cumprod: Tensor
    """`(T,)` in [0, 1], falling."""


def ratio(abar: Tensor) -> Tensor:
    """R = sqrt(abar / (1 - abar)), the signal-to-noise amplitude.

    Args:
        abar: alphas_cumprod in [0, 1), of any shape

    Returns:
        r >= 0, of the same shape.
    """
    return (abar / (1 - abar)).sqrt()


def window(schedule: Tensor | HasAbars, first: float) -> Tensor:
    """The paper's gain (Eq. 14, 15): r_t for t >= first, 0 below. With it, add_noise(x0, matched, t) is Eq. 13.

    Args:
        schedule: alphas_cumprod `(T,)` in [0, 1), or anything that has it, such as a diffusers scheduler
        first: the training timestep where the window begins, a whole number in 0..T-1 (the paper's T - S)

    Returns:
        The gain `(T,)`, float32, to be indexed with timesteps.

    Raises:
        OnbrandError: no such schedule, or a `first` outside it.
    """
    r, first = _ratios(schedule, first, "first")
    r[:first] = 0
    return r.float()


def constant(schedule: Tensor | HasAbars, start: float) -> Tensor:
    """The constant gain: min(r_t, r_start) at every t (docs/concepts/method.md, section 5; not the paper's).

    x_t = c_t x0 + k_t x_start + sqrt(1 - abar_t) eps then holds nothing of x0 at t = start. The noise to be predicted
    is one vector along a whole deterministic trajectory.

    Args:
        schedule: alphas_cumprod `(T,)` in [0, 1), or anything that has it, such as a diffusers scheduler
        start: the first timestep of inference, a whole number in 0..T-1

    Returns:
        The gain `(T,)`, float32, to be indexed with timesteps.

    Raises:
        OnbrandError: no such schedule, or a `start` outside it.
    """
    r, start = _ratios(schedule, start, "start")
    return r.minimum(r[start]).float()


def matched_noise(noise: Tensor, x0: Tensor, x_start: Tensor, gain: Tensor | float) -> Tensor:
    """eps_new = eps + g (x_start - x0) (Eq. 12, 14): put it where the noise was, in add_noise and in the target.

    Args:
        noise: eps `(B, C, H, W)`, standard normal
        x0: scaled latents `(B, C, H, W)` of the training images
        x_start: what each image starts from, `(B, C, H, W)`
        gain: g >= 0: `(B,)`, that is gain[timesteps], or one number

    Returns:
        eps_new `(B, C, H, W)`: computed in float32, in noise's dtype on its device.

    Raises:
        OnbrandError: the shapes differ.
    """
    same_shape(noise=noise, x0=x0, x_start=x_start)
    drift = x_start.to(noise.device, torch.float32) - x0.float()
    return (noise.float() + expand(torch.as_tensor(gain), drift) * drift).to(noise.dtype)


def x_init(x_start: Tensor, noise: Tensor, abar: Tensor | float) -> Tensor:
    """sqrt(abar) x_start + sqrt(1 - abar) eps (Eq. 8, 10): where inference starts.

    A pipeline's `latents=` is this over the scheduler's init_noise_sigma, times its own scale if it works in
    sigmas. `onbrand.start` does both.

    Args:
        x_start: `(B, C, H, W)`
        noise: eps `(B, C, H, W)`, standard normal
        abar: alphas_cumprod at the first inference timestep: a float or `(B,)`, in [0, 1]

    Returns:
        x_init `(B, C, H, W)`.

    Raises:
        OnbrandError: the shapes differ, or a float abar lies outside [0, 1].
    """
    return add_noise(x_start, noise, abar)


def handoff(x: Tensor, x_next: Tensor, noise: Tensor, abar: float, abar_next: float) -> Tensor:
    """The exact hand-off: after the window's step, the noise that was drawn and not the one estimated.

    x -> x_next is one deterministic DDIM step, so x0_hat follows from the two states alone. Solving for it magnifies
    rounding (about 35 times at 951 -> 901): keep the states in float32 if you can. Source: docs/concepts/method.md,
    section 5.

    Args:
        x: the state before the step, `(B, C, H, W)`
        x_next: the state after it, `(B, C, H, W)`
        noise: the eps of x_init, `(B, C, H, W)`
        abar: alphas_cumprod before the step, in (0, 1)
        abar_next: alphas_cumprod after it, in (0, 1]

    Returns:
        sqrt(abar_next) x0_hat + sqrt(1 - abar_next) noise, `(B, C, H, W)`, in x_next's dtype.

    Raises:
        OnbrandError: the shapes differ, or the two abars are one.
    """
    same_shape(x=x, x_next=x_next, noise=noise)
    x, out, noise = x.float(), x_next.float(), noise.to(x_next.device, torch.float32)
    signal, spread = weights(float(abar), x)
    signal_next, spread_next = weights(float(abar_next), x)
    determinant = signal * spread_next - signal_next * spread
    if abar == abar_next:
        raise OnbrandError(
            "value", f"a step goes from one abar to another: got {abar} twice; pass the two timesteps' abars"
        )
    x0_hat = (spread_next * x - spread * out) / determinant
    return (signal_next * x0_hat + spread_next * noise).to(x_next.dtype)


def _ratios(schedule: Tensor | HasAbars, timestep: float, name: str) -> tuple[Tensor, int]:
    """R `(T,)` in float64 and the timestep as an index into it."""
    abars = schedule if isinstance(schedule, Tensor) else schedule.alphas_cumprod
    if abars.ndim != 1 or not bool(((abars >= 0) & (abars < 1)).all()):
        raise OnbrandError(
            "value",
            f"a schedule is alphas_cumprod, (T,) numbers in [0, 1): got shape {tuple(abars.shape)}; "
            "pass the scheduler or its alphas_cumprod",
        )
    if timestep != int(timestep) or not 0 <= timestep < len(abars):
        raise OnbrandError(
            "value",
            f"{name} is a training timestep, a whole number in 0..{len(abars) - 1}: got {timestep}; "
            "round it, or read it off the scheduler's own timesteps",
        )
    return ratio(abars.double().cpu()), int(timestep)
