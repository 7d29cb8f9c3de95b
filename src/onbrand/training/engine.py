"""How a run is computed on the machine at hand: contexts around the loop, each of which undoes what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import cpu_offload_with_hook
from accelerate.state import AcceleratorState
from torch import nn

from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of
from onbrand.models.denoiser import Denoiser
from onbrand.training.objective import Batch, Objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LOSS_SCALE = 1024
"""By which a loss is multiplied, for gradients that float16 would round to nothing."""
TOLERANCE = 0.1
"""Relative error allowed to the norm of a compiled gradient, and rate of weights for which it may be larger."""


def reset_accelerate(device: torch.device, precision: str) -> None:
    """Let accelerate forget the device and precision of an earlier run of this process, if this run has others.

    accelerate keeps one of each for a process and refuses a second. Of several processes each has one run.
    """
    state = AcceleratorState._shared_state
    if not state or torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    if (state["device"].type, state["_mixed_precision"]) != (device.type, precision):
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def allow_tf32(allow: bool) -> Iterator[None]:
    """While this holds, a GPU's products in full precision are rounded to TensorFloat-32, or exact."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allow
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextmanager
def half_precision(pipe: DiffusionPipeline, denoiser: Denoiser, dtype: torch.dtype | None) -> Iterator[None]:
    """While this holds, the networks compute in `dtype`, whoever calls them: the loop, validation or its caller.

    The UNet's weights that do not learn are in `dtype` from here on. None: nothing changes.
    """
    if dtype is None:
        yield
        return
    denoiser.lower(dtype)
    networks = [pipe.unet, *nets_of(pipe)]
    for network in networks:
        network.forward = torch.autocast(network.device.type, dtype)(network.forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward
        denoiser.lower(dtype, whole=True)


@contextmanager
def compile_networks(pipe: DiffusionPipeline, enable: bool) -> Iterator[None]:
    """While this holds, the networks are compiled at their first call, if `enable`; no weight's name changes."""
    networks = [pipe.unet, *nets_of(pipe)] if enable else []
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def check_compiled(network: nn.Module, weights: Sequence[nn.Parameter], objective: Objective, batch: Batch) -> None:
    """Compile the networks and compare the norms of their gradients on a batch before and after.

    torch has compiled gradients of such networks wrong before, in silence (github.com/pytorch/pytorch/issues/190796,
    193061), and 2.13 does so on a CPU.

    Args:
        network: what is trained.
        weights: those of its weights that learn.
        objective: the loss of a batch.
        batch: any batch of the run.

    Raises:
        OnbrandError: the norms are not alike, or those before are no numbers.
    """
    norms = []
    for stance in ("force_eager", "default"):
        with torch.compiler.set_stance(stance):
            (LOSS_SCALE * objective(network, batch).total).backward()
        norms.append(
            torch.stack([torch.zeros_like(w).norm() if w.grad is None else w.grad.norm() for w in weights]).cpu()
        )
        for weight in weights:
            weight.grad = None
    eager, compiled = norms  # (W,) each
    broken = int((~torch.isfinite(eager)).sum())
    if broken:
        raise OnbrandError(
            "training",
            f"the gradients of {broken} of the networks' {len(weights)} weights are not finite before anything is "
            "compiled: take another model, or mixed_precision no if it is not",
        )
    # "not <=", for a norm that is no number is wrong too
    wrong = float((~((compiled - eager).abs() <= TOLERANCE * eager)).float().mean())
    if wrong > TOLERANCE or not float((compiled.norm() - eager.norm()).abs()) <= TOLERANCE * float(eager.norm()):
        raise OnbrandError(
            "training",
            f"torch {torch.__version__} compiles these networks wrong: the gradients of {wrong:.0%} of their weights "
            "change in size by it; leave compile out, or take another version of torch",
        )


@contextmanager
def offload_parts(pipe: DiffusionPipeline, parts: list[nn.Module]) -> Iterator[Callable[[], None]]:
    """While this holds, these parts of the pipeline wait on the CPU and come to the device when they are called.

    The VAE then takes one image at a time, and large ones in tiles. Yields a function that sends the parts back.
    """
    device = pipe.unet.device
    hooks = [cpu_offload_with_hook(part, device)[1] for part in parts]
    if parts:
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()

    def send_back() -> None:
        for hook in hooks:
            hook.offload()

    try:
        yield send_back
    finally:
        for hook in hooks:
            hook.remove()
            hook.model.to(device)
        if parts:
            pipe.vae.disable_slicing()
            pipe.vae.disable_tiling()
