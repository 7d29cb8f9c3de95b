"""When to stop: the share of validation pictures that pass the check rises no longer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .state import reached


def stalled(shares: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` shares is above the best of those before them; never where it is None."""
    return patience is not None and bool(shares) and len(shares) - 1 - shares.index(max(shares)) >= patience


def earlier(out: str | Path) -> list[float]:
    """The shares that passed, in the log of the run in `out` up to its last state: what it is resumed with."""
    out = Path(out)
    log, last = out / "log.jsonl", reached(out / "state")
    if not log.exists():
        return []
    # a kill may tear a line, but none up to a state
    lines = [json.loads(line) for line in log.read_text().splitlines()[:last]]
    return [line["passed"] for line in lines if line.get("passed") is not None]
