"""One step of a run, as the loop yields it and log.jsonl keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One optimiser step, as it was: a line of log.jsonl."""

    step: int
    """1..steps."""
    loss: float
    """Mean over the batch."""
    loss_inside: float | None
    """Mean over the samples in the window; none: the batch had none."""
    loss_outside: float | None
    """Mean over the others."""
    lr: float
    """Learning rate of this step."""
    seconds: float
    """Wall time of this step, its batch included; checkpoints, validation and held-out pictures not."""
    held: float | None = None
    """Loss of the weights that would be saved on held-out pictures under noise that is always the same; none: not
    looked at."""
    passed: float | None = None
    """What `validate` returned, such as the share of its pictures that pass a check; none: not asked, or nothing."""
