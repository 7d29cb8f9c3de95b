"""The one training loop: a generator of steps, resumed exactly from wherever it was stopped or killed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from onbrand.models.denoiser import Denoiser, freeze
from onbrand.options.train import TrainConfig
from onbrand.training import rng
from onbrand.training.batches import Batches
from onbrand.training.defaults import DTYPES, check, precision, settled
from onbrand.training.engine import check_compiled, compiled, half, offloaded, renew, tf32
from onbrand.training.export import denoiser_of, finish, keep, origin_of, teach
from onbrand.training.objective import Batch, Objective
from onbrand.training.optimizer import Learner
from onbrand.training.state import State, check_resumable, flatten, load, save, trim_log
from onbrand.training.validation import check_held, fixed, held_out, loss_on

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store, Summary
    from onbrand.data.records import Record

    Validate = Callable[[StableDiffusionPipeline, int], float | None]


def train(
    pipe: StableDiffusionPipeline,
    records: Sequence[Record],
    store: Store,
    prior: Prior | None,
    config: TrainConfig,
    out: str | Path,
    validate: Validate | None = None,
    held: Sequence[Record] = (),
) -> Generator[Step, None, None]:
    """Trains the pipeline's UNet, LoRA or ControlNet in place, one yielded Step at a time, from the last state in `out`
    if there is one.

    records: the pictures, their latents in `store` (the refused ones are passed over; of a store with mirrored
    pictures each side is taken half the time); prior: the one fitted on them (none for offset none).
    Writes `out`/config.yaml, log.jsonl, state/ and, after the last step, model/. `validate(pipe, step)` is called
    every `config.log.validate_every` steps, while the UNet holds the weights that would be saved; where it returns a
    number, a state is saved too: a caller that looks at `Step.passed` may end the run there and call `finish`.
    held: pictures that are not trained on, for `Step.held`, their latents in the same `store`.
    Under half precision the UNet of a LoRA or a ControlNet stays in it afterwards: load the pipeline anew to go on.
    Raises ValueError, before anything is computed or written, for a model, prior, folder or machine that the settings
    do not fit; FloatingPointError where the loss is no longer a number (what is in `out` is from before).
    """
    config = settled(config, prior)
    freeze(pipe)
    teach(pipe, config)
    pictures = store.look_up(records)
    objective = check(pipe, pictures, store, prior, config)
    check_held(config, bool(held))
    kept = held_out(store.look_up(held), pictures) if held else None
    if kept:
        check(pipe, kept, store, prior, config)
    origin = origin_of(pipe, pictures, store, prior, config, objective)
    return Run(
        pipe, denoiser_of(pipe, config), origin, pictures, store, prior, config, Path(out), validate, objective, kept
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
        held: Summary | None = None,
    ) -> None:
        self.pipe, self.config, self.prior, self.out, self.validate = pipe, config, prior, out, validate
        self.pictures, self.store, self.held = pictures, store, held
        self.origin = origin
        self.state = load(out / "state")
        if self.state is not None:
            check_resumable(self.state, config, self.origin)
        self.denoiser = denoiser
        arithmetic = precision(config, pipe.device)
        renew(pipe.device, arithmetic)
        self.accelerator = Accelerator(
            cpu=pipe.device.type == "cpu",
            mixed_precision=arithmetic,
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
        device, prefetch = self.accelerator.device, config.engine.prefetch
        self.objective = objective.to(device)
        self.prefetch = device.type == "cuda" if prefetch is None else prefetch
        self.coming: Future[list[Batch]] | None = None

    def steps(self) -> Generator[Step, None, None]:
        """The loop, and what is closed behind it wherever it ends."""
        engine, dtype = self.config.engine, DTYPES.get(self.accelerator.mixed_precision)
        if dtype and self.accelerator.is_main_process:
            keep(self.pipe, self.config, self.out)
        try:
            with (
                tf32(engine.tf32),
                half(self.pipe, self.denoiser, dtype),
                compiled(self.pipe, engine.compile),
                ThreadPoolExecutor(1) as thread,
            ):
                yield from self._steps(thread)
        finally:
            self.denoiser.eval()
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _steps(self, thread: ThreadPoolExecutor) -> Iterator[Step]:
        pipe, config, main = self.pipe.to(self.accelerator.device), self.config, self.accelerator.is_main_process
        prior = self.prior.to(pipe.device) if self.prior else None
        batches = Batches(pipe, self.pictures, self.store, prior, config, len(self.objective.abars))
        if config.engine.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        held = fixed(pipe, self.held, self.store, prior, config, len(self.objective.abars), self.share)
        learner = Learner(self.accelerator, self.denoiser, config)
        done = self._open(learner)
        self.denoiser.train()
        if config.engine.compile and done < config.steps:
            with torch.random.fork_rng():
                batch = self._parts(done + 1, batches)[0]
                check_compiled(learner.network, list(learner.learned.values()), self.objective, batch)
        idle = [pipe.vae] if config.engine.offload else []
        if idle and batches.captions.kept and self.denoiser.text_encoder is None:
            idle.append(pipe.text_encoder)
        with offloaded(pipe, idle) as send_back:
            for number in range(done + 1, config.steps + 1):
                step = self._look(self._take(number, learner, batches, thread), learner, held, send_back)
                if main:
                    with (self.out / "log.jsonl").open("a") as log:
                        log.write(json.dumps(asdict(step)) + "\n")
                    if number % config.log.checkpoint_every == 0 or number == config.steps or step.passed is not None:
                        state = State(number, flatten(config), self.origin, **learner.state())
                        save(self.out / "state", state, config.log.keep)
                self.accelerator.log({key: value for key, value in asdict(step).items() if value is not None}, number)
                yield step
        self.denoiser.eval()
        if main:
            finish(pipe, self.prior, config, self.out)
        self.accelerator.wait_for_everyone()

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

    def _look(self, step: Step, learner: Learner, held: Sequence[Batch], send_back: Callable[[], None]) -> Step:
        """The step with what is seen of the weights that would be saved after it; no random number is used up."""
        log, number = self.config.log, step.step
        look = bool(held) and number % log.held_every == 0
        show = self.validate is not None and bool(log.validate_every) and number % log.validate_every == 0
        if not look and not show:
            return step
        loss, passed = None, None
        self.denoiser.eval()
        # for other shapes the networks would be compiled anew
        eager = torch.compiler.set_stance("force_eager") if self.config.engine.compile else nullcontext()
        with learner.averaged(), torch.random.fork_rng(), eager:
            if look:  # by every process alike
                loss = loss_on(held, self.objective, self.denoiser)
            if show and self.validate and self.accelerator.is_main_process:
                passed = self.validate(self.pipe, number)
                send_back()
        self.denoiser.train()
        return replace(step, held=loss, passed=broadcast_object_list([passed])[0] if show else None)

    def _parts(self, number: int, batches: Batches) -> list[Batch]:
        """This process's share of every part of batch `number`."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        starts = [
            (number - 1) * self.config.batch + (part * processes + rank) * self.share
            for part in range(self.config.engine.accumulation)
        ]
        return [batches(range(start, start + self.share)) for start in starts]

    def _take(self, number: int, learner: Learner, batches: Batches, thread: ThreadPoolExecutor) -> Step:
        """Step `number`. With prefetch `thread` makes the next batch meanwhile; behind the step it is idle, so that
        neither validation nor a caller reads the pipeline and the store beside it."""
        begin, lr = time.perf_counter(), learner.lr
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        device = self.accelerator.device
        parts = self.coming.result() if self.coming else self._parts(number, batches)
        ahead = self.prefetch and batches.apart and number < self.config.steps
        self.coming = thread.submit(self._parts, number + 1, batches) if ahead else None
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # for dropout inside the network, where it has any
            torch.manual_seed(rng.seed_of(self.config.seed, "network", number * processes + rank))
            loss = learner.step(self.objective, parts)
        if self.coming:
            wait([self.coming])
        total = float(loss.total)
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss is {total} at step {number}; the last good state is in {self.out / 'state'}: resume it "
                "with a smaller optim.lr in another folder, or with more warm-up"
            )
        return Step(number, total, loss.inside, loss.outside, lr, time.perf_counter() - begin)


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
