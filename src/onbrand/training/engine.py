"""How a run is computed on the machine at hand: contexts around the loop, each of which undoes what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import cpu_offload_with_hook
from accelerate.state import AcceleratorState
from torch import nn

from onbrand.models.controlnet import nets_of
from onbrand.models.denoiser import Denoiser
from onbrand.training.objective import Batch, Objective

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SCALE = 1024
"""By which a loss is multiplied, for gradients that float16 would round to nothing."""
OFF = 0.1
"""How much a compiled gradient's norm may be off, and the share of weights of which it may be more."""


def renew(device: torch.device, arithmetic: str) -> None:
    """Lets accelerate forget the device and precision of an earlier run of this process, if they were others: it keeps
    one of each, and refuses. Of several processes each has one run."""
    known = AcceleratorState._shared_state
    if not known or torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    if (known["device"].type, known["_mixed_precision"]) != (device.type, arithmetic):
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """While this holds, a GPU's products in full precision are rounded to TensorFloat-32, or exact."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    own = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = own


@contextmanager
def half(pipe: StableDiffusionPipeline, denoiser: Denoiser, dtype: torch.dtype | None) -> Iterator[None]:
    """While this holds, the networks compute in half precision, whoever calls them: the loop, validation or its caller.
    What of the UNet does not learn is in it from here on. None: nothing changes."""
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
def compiled(pipe: StableDiffusionPipeline, asked: bool) -> Iterator[None]:
    """While this holds, the networks are compiled at their first call, where `asked`; no weight is named otherwise."""
    networks = [pipe.unet, *nets_of(pipe)] if asked else []
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def check_compiled(network: nn.Module, learned: Sequence[nn.Parameter], objective: Objective, batch: Batch) -> None:
    """Compiles the networks, and compares the norms of their gradients on a batch before and after.

    Raises ValueError if these are not alike: torch has compiled gradients of such networks wrong before, in silence
    (github.com/pytorch/pytorch/issues/190796, 193061), and 2.13 does so on a CPU.
    """
    norms = []
    for stance in ("force_eager", "default"):
        with torch.compiler.set_stance(stance):
            (SCALE * objective(network, batch).total).backward()
        norms.append(
            torch.stack([torch.zeros_like(w).norm() if w.grad is None else w.grad.norm() for w in learned]).cpu()
        )
        for weight in learned:
            weight.grad = None
    own, others = norms
    unlike = float(((others - own).abs() > OFF * own).float().mean())
    if unlike > OFF or not float((others.norm() - own.norm()).abs()) <= OFF * float(own.norm()):
        raise ValueError(
            f"torch {torch.__version__} compiles these networks wrong: the gradients of {unlike:.0%} of their weights "
            "change in size by it; set engine.compile false, or take another version of torch"
        )


@contextmanager
def offloaded(pipe: StableDiffusionPipeline, parts: list[nn.Module]) -> Iterator[Callable[[], None]]:
    """While this holds, these parts of the pipeline wait on the CPU and come when they are called, the VAE takes one
    picture at a time, large ones in tiles, and what is yielded sends the parts back."""
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
