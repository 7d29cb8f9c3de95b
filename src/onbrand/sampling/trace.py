"""x_t and x0_hat of every step, as in the paper's Fig. 2, from any scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.core.process import estimate

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Trace:
    """One image's way from the noise."""

    timesteps: list[float]
    """S timesteps, in the order the network was called at them."""
    x_t: Tensor
    """`(S, C, h, w)` float32: what the network saw there, sqrt(abar) x0 + sqrt(1 - abar) eps in any scheduler."""
    x0_hat: Tensor
    """`(S, C, h, w)` float32: the x0 it estimated there, guidance included (Eq. 3)."""


class Recorder:
    """Passed to a pipeline as `callback_on_step_end`, inside `attached`; then `traces()`.

    The network's own input and output are read at a hook on the UNet: what callbacks are given does not hold them.
    """

    def __init__(self, latents: Tensor, prediction_type: str, guidance: float) -> None:
        """latents: what the scheduler starts from (`latents=` times init_noise_sigma), (B, C, h, w)."""
        self._state, self._prediction_type, self._guidance = latents, prediction_type, guidance
        self._call: tuple[Tensor, Tensor] | None = None
        self._timesteps: list[float] = []
        self._x_t: list[Tensor] = []
        self._x0_hat: list[Tensor] = []

    @contextmanager
    def attached(self, pipe: DiffusionPipeline) -> Iterator[Recorder]:
        """While this holds, the UNet's calls are seen."""

        def see(module: Any, args: tuple[Any, ...], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output.sample
            self._call = args[0].detach().float(), output.detach().float()

        handle = pipe.unet.register_forward_hook(see)
        try:
            yield self
        finally:
            handle.remove()

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Diffusers' callback_on_step_end."""
        assert self._call is not None
        x_t, output = self._call
        if pipe.do_classifier_free_guidance:
            x_t = x_t.chunk(2)[1]
            unguided, guided = output.chunk(2)
            output = unguided + self._guidance * (guided - unguided)
        abar = _abar(pipe.scheduler, step, timestep, self._state.float(), x_t)
        self._timesteps.append(float(timestep))
        self._x_t.append(x_t.cpu())
        self._x0_hat.append(estimate(self._prediction_type, output, x_t, abar)[0].cpu())
        self._state = tensors["latents"].detach()
        return {}

    def traces(self) -> list[Trace]:
        """A Trace for each image of the batch."""
        x_t, x0_hat = torch.stack(self._x_t, 1), torch.stack(self._x0_hat, 1)
        return [Trace(list(self._timesteps), *both) for both in zip(x_t, x0_hat, strict=True)]


def _abar(scheduler: Any, step: int, timestep: Any, state: Tensor, x_t: Tensor) -> float:
    """The abar at which the network was called.

    A scheduler that works in sigmas divides its state by sqrt(1 + sigma^2) = 1 / sqrt(abar) for the network; the
    others hand the state on, and keep sigmas per step (the DPM-Solver family) or alphas per timestep (DDIM, PNDM).
    """
    share = float(x_t.double().square().sum() / state.double().square().sum())
    if abs(share - 1) > 1e-6:
        return share
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) == len(scheduler.timesteps) + 1:
        return 1 / (1 + float(scheduler.sigmas[step]) ** 2)
    return float(scheduler.alphas_cumprod[int(timestep)])
