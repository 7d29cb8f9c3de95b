"""How a GPU is timed: synchronized blocks in turn, memory beside what was there, the time in which it works."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.profiler import ProfilerActivity, profile

from step import interval

T = TypeVar("T")
LEAST = 5
"""Rounds that are timed however long they take."""
WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""The categories of torch.profiler's trace in which a GPU works."""


def fresh(exact: bool = False) -> None:
    """Makes the process ready for another measurement: accelerate forgets its device and precision, what was dropped
    is freed, and float32 is multiplied as torch has it (convolutions in TF32), or exactly."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = not exact


def wait(device: str) -> None:
    """Returns when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`, the device's share of it included."""
    wait(device)
    begin = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin


def paired(
    blocks: Mapping[str, Callable[[], object]], device: str, rounds: int, limit: float = 30.0
) -> dict[str, list[float]]:
    """Seconds of each block, taken in turn in an order that is reversed every round; all were warmed up before.

    rounds: at most; after LEAST of them no round is begun that comes after `limit` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= LEAST and time.perf_counter() - begin > limit:
            break
        for name in list(blocks) if turn % 2 else reversed(list(blocks)):
            seconds[name].append(seconds_of(blocks[name], device))
    return seconds


def rate(seconds: list[float], images: int) -> tuple[float, float, float]:
    """Images a second of blocks of `images`: (median, low, high) with step.py's interval."""
    return interval([images / each for each in seconds])


def ratio(seconds: list[float], others: list[float]) -> tuple[float, float, float]:
    """How many times as long the others' blocks took, paired: (median, low, high)."""
    return interval([other / each for each, other in zip(seconds, others, strict=True)])


def peak(device: str, make: Callable[[], T]) -> tuple[T, float | None]:
    """What `make` gives, and the most GB (1e9 bytes) that torch held for it beside what was there; none on a CPU."""
    if device != "cuda":
        return make(), None
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = make()
    wait(device)
    return made, round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)


def idle(work: Callable[[], object], device: str, seconds: list[float]) -> float | None:
    """Share of the median of `seconds`, which `work` takes unwatched, in which the GPU does nothing; none on a CPU, and
    where torch's profiler fails."""
    watched = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    try:
        with profile(activities=[watched]) as trace:
            work()
            wait(device)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            trace.export_chrome_trace(str(file))
            events = json.loads(file.read_text(errors="replace"), strict=False)["traceEvents"]
    except Exception:  # what was timed before stands without it
        traceback.print_exc()
        return None
    return 1 - busy(events) / statistics.median(seconds) if device == "cuda" else None


def busy(events: list[dict[str, Any]]) -> float:
    """Seconds in which at least one kernel or copy runs, of a trace's events (`ts` and `dur` in microseconds)."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in WORK)
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total / 1e6
