"""A resumable run of optimisation steps: the one loop that all parts of onbrand-tiny are trained by."""

from __future__ import annotations

import argparse
import io
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

SHARD = 15 * 2**20
"""Bytes of a file of a light state, at most."""


def placed(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where a part is trained, and for how long."""
    parser.add_argument("--device", default="cpu", help="cuda: bfloat16, channels last, light states")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so many, with a state")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the world; 0: this one")


def place() -> tuple[int, int]:
    """(rank, processes): (0, 1) by itself, more under `torchrun --nproc-per-node N`."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(hours=6))  # the first process may draw the world for long
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shared(parameters: list[torch.nn.Parameter], over: bool) -> bool:
    """Every process's gradients become their mean; whether any of them is out of time."""
    mark = torch.tensor([float(over)], device=parameters[0].device)
    flat = torch.cat([*(p.grad.flatten() for p in parameters), mark])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))
    return bool(flat[-1] > 0)


def run(
    name: str, modules: dict[str, torch.nn.Module], loss: Callable[[int, torch.Generator], torch.Tensor], *,
    steps: int, lr: float, out: Path, keep: int = 100, ema: float = 0.0, decay: float = 1e-4,
    device: str = "cpu", seconds: float = math.inf,
) -> dict[str, torch.nn.Module]:  # fmt: skip
    """Train `modules` by AdamW with a warmed-up cosine; state every `keep` steps, resumed from where it stopped.

    `loss(step, generator)` must draw all its randomness from the generator, which is seeded by the step and on the
    device. With `ema`, what is returned is the running average. Several processes each take a batch of their own every
    step. A run that takes longer than `seconds` ends the process, with a state.

    Off the CPU a state is light: the running average in half precision, in files of SHARD bytes. What is resumed from
    it has its optimiser anew, and is warmed up again.
    """
    rank, processes = place()
    heavy = device == "cpu"
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    for module in modules.values():
        module.to(device, memory_format=torch.preserve_format if heavy else torch.channels_last)
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, betas=(0.9, 0.99), fused=not heavy)
    buffers = [b for m in modules.values() for b in m.buffers()]  # running statistics of batches
    average = [p.detach().clone() for p in parameters]
    path, first = out / f"{name}.state.pt", 0
    light = None if heavy else load_light(out, name)
    if light:
        first = light["step"]
        for p, a, mean in zip(parameters, average, light["average"], strict=True):
            p.data.copy_(mean)
            a.copy_(mean)
        for buffer, saved in zip(buffers, light["buffers"], strict=True):
            buffer.copy_(saved)
    elif heavy and path.exists():
        state = torch.load(path, weights_only=True)
        first = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for p, a, saved, mean in zip(parameters, average, state["parameters"], state["average"], strict=True):
            p.data.copy_(saved)
            a.copy_(mean)
        for buffer, saved in zip(buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
    start, recent, warm = time.time(), [], first if light else 0
    for step in tqdm(range(first, steps), name, initial=first, total=steps, mininterval=10, disable=rank > 0):
        scale = min(1.0, (step + 1 - warm) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        value = loss(step, torch.Generator(device).manual_seed(step * processes + rank))
        optimizer.zero_grad()
        value.backward()
        over = time.time() - start > seconds
        if processes > 1:
            over = shared(parameters, over)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate = min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - rate)
        recent.append(value.detach())
        if rank > 0:
            if over and step + 1 < steps:
                raise SystemExit(0)
            continue
        if (step + 1) % 50 == 0:
            mean = torch.stack(recent).mean().item()
            with (out / f"{name}.log").open("a") as log:
                print(step + 1, f"{mean:.5f}", f"{time.time() - start:.0f}s", file=log)
            recent = []
        if (step + 1) % keep == 0 or step + 1 == steps or over:
            state = {"step": step + 1, "average": average, "buffers": buffers}
            if heavy:
                state |= {"optimizer": optimizer.state_dict(), "parameters": [p.detach() for p in parameters]}
                torch.save(state, path.with_suffix(".tmp"))
                os.replace(path.with_suffix(".tmp"), path)
            else:
                save_light(out, name, state)
        if over and step + 1 < steps:
            print(f"{name}: {step + 1} of {steps} steps; the same command goes on")
            raise SystemExit(0)
    for p, a in zip(parameters, average, strict=True):
        p.data.copy_(a)
    return {k: m.eval().to(memory_format=torch.contiguous_format) for k, m in modules.items()}


def save_light(out: Path, name: str, state: dict[str, Any]) -> None:
    """Writes `out`/NAME.STEP.0of3, ..., and removes those of other steps."""
    half = [[t.half() if t.is_floating_point() else t for t in state[key]] for key in ("average", "buffers")]
    written = io.BytesIO()
    kept = [[t.cpu().contiguous() for t in tensors] for tensors in half]
    torch.save({"step": state["step"], "average": kept[0], "buffers": kept[1]}, written)
    content, stem = written.getbuffer(), f"{name}.{state['step']:08d}"
    count = -(-len(content) // SHARD)
    for number in range(count):
        draft = out / f".{name}.tmp"
        draft.write_bytes(content[number * SHARD : (number + 1) * SHARD])
        os.replace(draft, out / f"{stem}.{number}of{count}")
    for file in out.glob(f"{name}.*of*"):
        if not file.name.startswith(f"{stem}."):
            file.unlink()


def load_light(out: Path, name: str) -> dict[str, Any] | None:
    """The last light state of which all files are there; none where there is none."""
    stems = sorted({file.stem for file in out.glob(f"{name}.*of*")}, reverse=True)
    for stem in stems:
        files = sorted(out.glob(f"{stem}.*of*"), key=lambda file: int(file.suffix[1:].split("of")[0]))
        if len(files) == int(files[0].suffix.split("of")[1]):
            return torch.load(io.BytesIO(b"".join(file.read_bytes() for file in files)), weights_only=True)
    return None
