"""The most memory that a run took, and what to do if there is too little."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onbrand.errors import OnbrandError

if TYPE_CHECKING:
    import torch

PEAK = ("peak_memory_gb", "peak_memory_of")
"""What run.json says of a run's memory: GB (1e9 bytes), and what was measured."""


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """While this holds, a GPU's memory that runs out is an OnbrandError with the remedy. It may decorate a function."""
    try:
        yield
    except RuntimeError as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            raise
        reason = ". ".join(str(error).split(". ")[:2])  # how much was there; behind it stands advice to programmers
        raise OnbrandError("memory", f"the GPU has too little memory ({reason}): {remedy}") from error


def peak_memory(device: torch.device) -> dict[str, Any]:
    """The most memory that this process took since it began.

    On a GPU it is what torch allocated there at most. Elsewhere it is the process's largest resident size, all that it
    has loaded included.

    Args:
        device: where the run computes.

    Returns:
        A value for each name of PEAK; {} on a system that does not count it (Windows).
    """
    if device.type == "cuda":
        from torch.cuda import max_memory_allocated

        return _peak(max_memory_allocated(device), "allocated on the GPU")
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return _peak(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident in the process")


def _peak(size: int, what: str) -> dict[str, Any]:
    return dict(zip(PEAK, (round(size / 1e9, 3), what), strict=True))
