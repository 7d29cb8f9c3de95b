"""When a run ends early: its validation images pass the brand's check no more often than before."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.io import read_content
from onbrand.training.state import LOG, last_step

if TYPE_CHECKING:
    from onbrand.training.loop import Step


def until_stalled(steps: Generator[Step, None, None], rates: list[float], patience: int | None) -> Iterator[Step]:
    """The steps of a run up to the one at which it has stalled; then the run is closed.

    Args:
        steps: the run, as `training.loop.train` returns it.
        rates: the pass rates of its validations so far, to which later ones are added.
        patience: validations that may raise nothing; None: the run goes on to its end.

    Yields:
        The steps, none if the run has stalled already.
    """
    for step in () if has_stalled(rates, patience) else steps:
        yield step
        rates += [] if step.passed is None else [step.passed]
        if has_stalled(rates, patience):
            break
    steps.close()


def has_stalled(rates: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` rates is above the best of those before them; never if it is None."""
    return patience is not None and bool(rates) and len(rates) - 1 - rates.index(max(rates)) >= patience


def read_pass_rates(out: str | Path) -> list[float]:
    """The pass rates in the log of the run in `out`, up to its last state: what it is resumed with.

    Raises:
        OnbrandError: one of these lines is damaged.
    """
    out = Path(out)
    log, last = out / LOG, last_step(out / "state")
    # a kill may tear a line, but none up to a state
    lines = log.read_bytes().split(b"\n")[:last] if log.is_file() else []
    entries = [read_content(line, f"{log} line {number}", LOG) for number, line in enumerate(lines, 1) if line.strip()]
    return [entry["passed"] for entry in entries if entry.get("passed") is not None]
