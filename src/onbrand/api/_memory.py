"""The most memory that a run took, and what to do if there is too little."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onbrand.errors import OnbrandError

if TYPE_CHECKING:
    import torch

PEAK = ("peak_memory_gb", "peak_memory_of")
"""What run.json says of a run's memory: GB (1e9 bytes), and what was measured."""
LACKING = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|std::bad_alloc|bad allocation"
    r"|failed to map segment|can't start new thread|\(os error 12\)|_STATUS_ALLOC_FAILED|failed to allocate",
    re.IGNORECASE,
)
"""How torch, its allocators, CUDA's libraries, safetensors and the loader say that there is no memory."""


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """While this holds, memory that runs out, a GPU's or the machine's, is an OnbrandError with the remedy."""
    try:
        yield
    except OnbrandError:
        raise
    except Exception as error:
        cause = lacking(error)
        if cause is None:
            raise
        words = str(cause).strip()
        gpu = type(cause).__name__ == "OutOfMemoryError" or re.search(r"CUDA|CUBLAS|CUDNN|HIP|MPS", words)
        size = re.search(r"tried to allocate (\d+) bytes", words)
        # how much was there; behind it stands advice to programmers
        reason = ". ".join(words.split("\n")[0].split(". ")[:2])
        reason = f"not the {int(size[1]) / 1e6:,.1f} MB more that were needed" if size else reason
        what = f"{'the GPU' if gpu else 'this machine'} has too little memory{reason and f' ({reason})'}"
        raise OnbrandError("memory", f"{what}: {remedy}") from error


def lacking(error: Exception) -> Exception | None:
    """The error, of those that led to `error`, which says that there was no memory left; none if that is not so."""
    before = error.__cause__ or error.__context__
    wraps = isinstance(error, RuntimeError | ImportError)  # as libraries do with what their own imports raise
    first = lacking(before) if wraps and isinstance(before, Exception) else None
    if first is not None:
        return first
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return error if error.errno == errno.ENOMEM else None
    speaks = wraps or isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
    return error if speaks and LACKING.search(str(error)) else None


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
