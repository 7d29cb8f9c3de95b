"""The one training loop: a generator of steps, resumed exactly from wherever it was stopped or killed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from accelerate import Accelerator

from onbrand.models.adapters import Denoiser, freeze

from . import draws
from .batches import Batches
from .check import check, precision, settled
from .config import TrainConfig
from .flags import flatten
from .learner import Learner
from .model import denoiser_of, finish, origin_of
from .objective import Objective
from .state import State, check_resumable, load, save, trim_log

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record

    Validate = Callable[[StableDiffusionPipeline, int], None]


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
    """Wall time of this step, its batch included; checkpoints and validation pictures not."""


def train(
    pipe: StableDiffusionPipeline,
    records: Sequence[Record],
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
    out: str | Path,
    validate: Validate | None = None,
) -> Iterator[Step]:
    """Trains the pipeline's UNet in place, one yielded Step at a time, from the last state in `out` if there is one.

    records: the pictures, their latents in `store` (the refused ones are passed over; of a store with mirrored
    pictures each side is taken half the time); prior: the one fitted on them (none for offset none).
    Writes `out`/config.yaml, log.jsonl, state/ and, after the last step, model/. `validate(pipe, step)` is called
    every `config.log.validate_every` steps, while the UNet holds the weights that would be saved.
    Raises ValueError, before anything is computed or written, for a model, prior, folder or machine that the settings
    do not fit; FloatingPointError where the loss is no longer a number (what is in `out` is from before).
    """
    config = settled(config, prior)
    freeze(pipe)
    pictures = store.look_up(records)
    objective = check(pipe, pictures, store, prior, config)
    origin = origin_of(pipe, pictures, store, prior, config, objective)
    return Run(
        pipe, denoiser_of(pipe, config), origin, pictures, store, prior, config, Path(out), validate, objective
    ).steps()


class Run:
    """One run and its folder; `train` makes it and iterates over its steps."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        denoiser: Denoiser,
        origin: dict[str, str],
        pictures: Summary,
        store: Store,
        prior: Prior | None,
        config: TrainConfig,
        out: Path,
        validate: Validate | None,
        objective: Objective,
    ) -> None:
        self.pipe, self.config, self.prior, self.out, self.validate = pipe, config, prior, out, validate
        self.pictures, self.store = pictures, store
        self.origin = origin
        self.state = load(out / "state")
        if self.state is not None:
            check_resumable(self.state, config, self.origin)
        self.denoiser = denoiser
        self.accelerator = Accelerator(
            cpu=pipe.device.type == "cpu",
            mixed_precision=precision(config, pipe.device),
            gradient_accumulation_steps=config.engine.accumulation,
            log_with=config.log.tracker,
            project_dir=out,
        )
        shares = config.engine.accumulation * self.accelerator.num_processes
        if config.batch % shares:
            raise ValueError(
                f"batch counts a step's pictures over all processes and accumulated parts; got {config.batch} for "
                f"{self.accelerator.num_processes} processes x {config.engine.accumulation} parts: take a multiple "
                f"of {shares}"
            )
        self.share = config.batch // shares
        self.objective = objective.to(self.accelerator.device)

    def steps(self) -> Iterator[Step]:
        """The loop."""
        pipe, config, main = self.pipe.to(self.accelerator.device), self.config, self.accelerator.is_main_process
        prior = self.prior.to(pipe.device) if self.prior else None
        batches = Batches(pipe, self.pictures, self.store, prior, config, len(self.objective.abars))
        if config.engine.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        learner = Learner(self.accelerator, self.denoiser, config)
        done = self._open(learner)
        self.denoiser.train()
        for number in range(done + 1, config.steps + 1):
            step = self._take(number, learner, batches)
            if main:
                with (self.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(asdict(step)) + "\n")
                if self.validate and config.log.validate_every and number % config.log.validate_every == 0:
                    self.denoiser.eval()
                    with learner.averaged(), torch.random.fork_rng():
                        self.validate(pipe, number)
                    self.denoiser.train()
                if number % config.log.checkpoint_every == 0 or number == config.steps:
                    state = State(number, flatten(config), self.origin, **learner.state())
                    save(self.out / "state", state, config.log.keep)
            self.accelerator.log({key: value for key, value in asdict(step).items() if value is not None}, number)
            yield step
        self.denoiser.eval()
        if main:
            finish(pipe, self.prior, config, self.out)
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _open(self, learner: Learner) -> int:
        """Makes the folder what it was at the last state; the number of steps taken by then."""
        done = 0
        if self.state is not None:
            learner.resume(self.state)
            done, self.state = self.state.step, None
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            trim_log(self.out / "log.jsonl", done)
            (self.out / "config.yaml").write_text(yaml.safe_dump(asdict(self.config), sort_keys=False))
        if self.config.log.tracker:
            settings = {name: value if value is not None else "" for name, value in flatten(self.config).items()}
            self.accelerator.init_trackers("onbrand", {name: str(value) for name, value in settings.items()})
        return done

    def _take(self, number: int, learner: Learner, batches: Batches) -> Step:
        """Step `number`, this process's share of every part of its batch."""
        begin, lr = time.perf_counter(), learner.lr
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        starts = [
            (number - 1) * self.config.batch + (part * processes + rank) * self.share
            for part in range(self.config.engine.accumulation)
        ]
        parts = (batches(range(start, start + self.share)) for start in starts)
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # for dropout inside the network, where it has any
            torch.manual_seed(draws.seed_of(self.config.seed, "network", number * processes + rank))
            loss = learner.step(self.objective, parts)
        total = float(loss.total)
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss is {total} at step {number}; the last good state is in {self.out / 'state'}: resume it "
                "with a smaller optim.lr in another folder, or with more warm-up"
            )
        return Step(number, total, loss.inside, loss.outside, lr, time.perf_counter() - begin)
