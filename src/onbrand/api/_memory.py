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
        if not lacks_memory(error):
            raise
        words = str(error).strip() or type(error).__name__
        gpu = type(error).__name__ == "OutOfMemoryError" or re.search(r"CUDA|CUBLAS|CUDNN|HIP|MPS", words)
        size = re.search(r"tried to allocate (\d+) bytes", words)
        # how much was there; behind it stands advice to programmers
        reason = f"for {int(size[1]) / 1e9:.2f} GB" if size else ". ".join(words.splitlines()[0].split(". ")[:2])
        where = "the GPU" if gpu else "this machine"
        raise OnbrandError("memory", f"{where} has too little memory ({reason}): {remedy}") from error


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there was no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or (error.errno is None and bool(LACKING.search(str(error))))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    kinds = isinstance(error, RuntimeError | ImportError) or type(error).__name__ == "SafetensorError"
    return kinds and bool(LACKING.search(str(error)))


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
