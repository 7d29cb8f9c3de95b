"""The most memory that a run took."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
