"""A resumable run of optimisation steps: the one loop that all parts of onbrand-tiny are trained by."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm


def place() -> tuple[int, int]:
    """(rank, processes): (0, 1) by itself, more under `torchrun --nproc-per-node N`."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shared(parameters: list[torch.nn.Parameter]) -> None:
    """Every process's gradients become their mean."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def run(
    name: str, modules: dict[str, torch.nn.Module], loss: Callable[[int, torch.Generator], torch.Tensor], *,
    steps: int, lr: float, out: Path, keep: int = 100, ema: float = 0.0, decay: float = 1e-4,
) -> dict[str, torch.nn.Module]:  # fmt: skip
    """Train `modules` by AdamW with a warmed-up cosine; state every `keep` steps, resumed from where it stopped.

    `loss(step, generator)` must draw all its randomness from the generator, which is seeded by the step. With `ema`,
    what is returned is the running average. Several processes each take a batch of their own every step.
    """
    rank, processes = place()
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, betas=(0.9, 0.99))
    buffers = [b for m in modules.values() for b in m.buffers()]  # running statistics of batches
    average = [p.detach().clone() for p in parameters]
    path, first = out / f"{name}.state.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        first = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for p, a, saved, mean in zip(parameters, average, state["parameters"], state["average"], strict=True):
            p.data.copy_(saved)
            a.copy_(mean)
        for buffer, saved in zip(buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
    log = (out / f"{name}.log").open("a") if rank == 0 else None
    start, recent = time.time(), []
    for step in tqdm(range(first, steps), name, initial=first, total=steps, mininterval=10, disable=rank > 0):
        scale = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        value = loss(step, torch.Generator().manual_seed(step * processes + rank))
        optimizer.zero_grad()
        value.backward()
        if processes > 1:
            shared(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate = min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - rate)
        recent.append(value.item())
        if rank > 0:
            continue
        if (step + 1) % 50 == 0:
            print(step + 1, f"{sum(recent) / len(recent):.5f}", f"{time.time() - start:.0f}s", file=log, flush=True)
            recent = []
        if (step + 1) % keep == 0 or step + 1 == steps:
            state = {"step": step + 1, "optimizer": optimizer.state_dict(), "average": average, "buffers": buffers}
            torch.save(state | {"parameters": [p.detach() for p in parameters]}, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    for p, a in zip(parameters, average, strict=True):
        p.data.copy_(a)
    return {k: m.eval() for k, m in modules.items()}
