"""The most memory that a run took, and what to do where it was not enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """While this holds, a GPU's memory that runs out is a ValueError with the remedy; it may stand over a function."""
    try:
        yield
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        said = ". ".join(str(error).split(". ")[:2])  # how much was to be had; then advice to programmers
        raise ValueError(f"the GPU has too little memory ({said}): {remedy}") from error


def peak_memory(device: torch.device) -> dict[str, Any]:
    """{"peak_memory_gb": GB (1e9 bytes), "peak_memory_of": what was measured}, of this process since it began.

    On a GPU what torch allocated there at most, elsewhere the process's largest resident size, all it has loaded
    included; {} where the system does not tell (Windows).
    """
    if device.type == "cuda":
        from torch.cuda import max_memory_allocated

        return _told(max_memory_allocated(device), "allocated on the GPU")
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return _told(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident in the process")


def _told(size: int, what: str) -> dict[str, Any]:
    return {"peak_memory_gb": round(size / 1e9, 3), "peak_memory_of": what}
