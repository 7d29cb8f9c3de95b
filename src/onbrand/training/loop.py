"""The one training loop: a generator of steps, resumed exactly from wherever it was stopped or killed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from onbrand.data.buckets import Bucket
from onbrand.errors import OnbrandError
from onbrand.io import append, write_text
from onbrand.models.denoiser import Denoiser, freeze
from onbrand.models.families import encoders_of
from onbrand.options.train import TrainSettings
from onbrand.training import rng
from onbrand.training.batches import mixture
from onbrand.training.defaults import DTYPES, check_run, check_settings, resolve_defaults, resolve_precision
from onbrand.training.engine import (
    allow_tf32,
    check_compiled,
    compile_networks,
    half_precision,
    offload_parts,
    reset_accelerate,
)
from onbrand.training.export import UNET, denoiser_of, keep_unet, origin_of, save_model, set_scheduler
from onbrand.training.objective import Batch
from onbrand.training.optimizer import Learner
from onbrand.training.state import (
    SCHEMA,
    State,
    check_resumable,
    discard_drafts,
    last_step,
    load_state,
    save_state,
    settings_of,
    total_batch_size,
    trim_log,
)
from onbrand.training.validation import check_validation_data, mean_loss, validation_batches, validation_images

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.data.latents import Store
    from onbrand.data.records import Record

    Validate = Callable[[DiffusionPipeline, int], float | None]


@dataclass(frozen=True)
class Step:
    """One optimizer step, as it was: a line of log.jsonl."""

    step: int
    """1..max_train_steps."""
    loss: float
    """Mean over the batch."""
    loss_inside: float | None
    """Mean over the samples in the window; none: the batch had none."""
    loss_outside: float | None
    """Mean over the others."""
    lr: float
    """Learning rate of this step."""
    seconds: float
    """Wall time of this step, its batch included; checkpoints and validation not."""
    validation_loss: float | None = None
    """Loss of the weights that would be saved on the validation images, under sampling noise that is always the same;
    none: this step has no validation loss."""
    passed: float | None = None
    """What `validate` returned, such as the rate of its images that pass a check; none: it was not called, or returned
    nothing."""


def settle(pipe: DiffusionPipeline, prior: Prior | None, config: TrainSettings) -> TrainSettings:
    """The settings with their start, once model, prior and machine fit them; the pipeline is frozen and has their
    scheduler. This comes before any image is encoded; `train` begins with it too.

    Raises:
        OnbrandError: something does not fit.
    """
    config = resolve_defaults(config, prior)
    freeze(pipe)
    set_scheduler(pipe, config)
    check_settings(pipe, prior, config)
    return config


def train(
    pipe: DiffusionPipeline,
    records: Sequence[Record],
    store: Store,
    prior: Prior | None,
    config: TrainSettings,
    out: str | Path,
    validate: Validate | None = None,
    validation_records: Sequence[Record] = (),
    others: Sequence[Bucket] = (),
) -> Generator[Step, None, None]:
    """Train the pipeline's UNet, LoRA or ControlNet in place, one yielded Step at a time.

    The run goes on from the last state in `out`, if there is one. It writes `out`/config.yaml, log.jsonl, state/ and,
    after the last step, model/. Under half precision the UNet of a LoRA or a ControlNet stays in half precision
    afterwards: load the pipeline anew to go on with it.

    Args:
        pipe: the model, its weights in float32, on the device of the run.
        records: the images; the refused ones are passed over.
        store: their latents. Of a store with mirrored images each side is taken half the time.
        prior: the prior fitted on them; None for start noise.
        config: the settings.
        out: the run's folder.
        validate: called as `validate(pipe, step)` every `config.validation_steps` steps, while the network holds the
            weights that would be saved. If it returns a number, a state is saved too: a caller that looks at
            `Step.passed` may end the run there and call `save_model`.
        validation_records: images that are not trained on, for `Step.validation_loss`; their latents are in `store`.
        others: images of further sizes, trained on as well; the prior knows these sizes.

    Returns:
        The generator of the steps that are left. Closing it ends the run, its thread included.

    Raises:
        OnbrandError: the settings do not fit the model, prior, folder or machine. It is raised by this call, before
            anything is computed or written. A step raises one of code diverged if the loss or the weights are no longer
            numbers; what is in `out` is then from before.
    """
    out, config = Path(out), settle(pipe, prior, config)
    data = [Bucket(store, records, validation_records), *others]
    buckets = [(one.store, one.store.look_up(one.records)) for one in data]
    for own, images in buckets:
        objective = check_run(pipe, images, own, prior.at(own.key.resolution) if prior and others else prior, config)
    check_validation_data(config, any(one.validation for one in data))
    candidates = [(one.store, one.store.look_up(one.validation)) for one in data if one.validation]
    validation_sets = validation_images(candidates, [images for _, images in buckets]) if candidates else []
    for own, images in validation_sets:
        check_run(pipe, images, own, prior.at(own.key.resolution) if prior and others else prior, config)
    origin = origin_of(pipe, buckets, prior, config, objective)
    denoiser = denoiser_of(pipe, config)
    last_state = load_state(out / "state")
    accelerator = accelerator_of(pipe.device, config, out)
    device, main = accelerator.device, accelerator.is_main_process
    process, processes = accelerator.process_index, accelerator.num_processes
    batch_size, max_steps = total_batch_size(config, processes), config.max_train_steps
    if last_state is not None:
        check_resumable(last_state, config, batch_size, origin, out / "state")
    objective = objective.to(device)

    def steps(state: State | None) -> Generator[Step, None, None]:
        dtype = DTYPES.get(accelerator.mixed_precision)
        if dtype and main:
            keep_unet(pipe, config, out)
        with (
            end_of_run(denoiser, accelerator),
            allow_tf32(config.allow_tf32),
            half_precision(pipe, denoiser, dtype),
            compile_networks(pipe, config.compile),
            ThreadPoolExecutor(1) as thread,
        ):
            pipe.to(device)
            device_prior, timesteps = prior.to(device) if prior else None, len(objective.abars)
            batches = mixture(pipe, buckets, device_prior, config, timesteps, out)
            if config.gradient_checkpointing:
                denoiser.enable_gradient_checkpointing()
            loss_batches: list[Batch] = []
            if validation_sets:
                loss_batches += validation_batches(pipe, validation_sets, device_prior, config, timesteps, out)
            learner = Learner(accelerator, denoiser, config)
            steps_before = 0
            if state is not None:
                learner.resume(state)
                steps_before, state = state.step, None  # its tensors are not needed any more
            open_folder(out, config, steps_before, accelerator)
            denoiser.train()

            def parts_of(number: int) -> list[Batch]:
                return [batches(positions) for positions in positions_of(number, config, process, processes)]

            if config.compile and steps_before < max_steps:
                with torch.random.fork_rng():
                    part = parts_of(steps_before + 1)[0]
                    check_compiled(learner.network, list(learner.weights.values()), objective, part)
            prefetch = on_gpu(device) if config.prefetch is None else config.prefetch
            next_parts: Future[list[Batch]] | None = None
            idle = [pipe.vae] if config.offload else []
            if idle and not denoiser.encoders:
                idle += encoders_of(pipe).values()
            with offload_parts(pipe, idle) as send_back:
                for number in range(steps_before + 1, max_steps + 1):
                    begin, lr = time.perf_counter(), learner.lr
                    parts = next_parts.result() if next_parts else parts_of(number)
                    next_parts = thread.submit(parts_of, number + 1) if prefetch and number < max_steps else None
                    with network_rng(config.seed, number * processes + process, device):
                        loss = learner.step(objective, parts)
                    # between two steps the thread is idle, so that neither validation nor a caller reads the pipeline
                    # and the store beside it
                    if next_parts:
                        wait([next_parts])
                    total = finite(float(loss.total), number, out, dtype is not None)
                    seconds = time.perf_counter() - begin

                    validation_loss, passed = None, None
                    computes_loss = due(number, config.validation_loss_steps if loss_batches else 0)
                    makes_images = due(number, config.validation_steps if validate else 0)
                    if computes_loss or makes_images:
                        with weights_as_saved(learner, denoiser, config):
                            if computes_loss:  # by every process alike
                                validation_loss = mean_loss(loss_batches, objective, denoiser)
                            if makes_images and validate and main:
                                passed = validate(pipe, number)
                                send_back()
                    if makes_images:
                        passed = broadcast_object_list([passed])[0]

                    step = Step(number, total, loss.inside, loss.outside, lr, seconds, validation_loss, passed)
                    line = asdict(step)
                    if main:
                        with append(out / "log.jsonl") as log:
                            log.write(json.dumps(line).encode() + b"\n")
                    # a state of what passed too: a caller may end the run at it
                    saves = due(number, config.checkpointing_steps) or number == max_steps or passed is not None
                    if main and saves:
                        finite_weights(learner.weights, number, out, dtype is not None)
                        settings = settings_of(config) | {"total_batch_size": batch_size}
                        current = State(number, settings, origin, **learner.state())
                        save_state(out / "state", current, config.checkpoints_total_limit)
                    accelerator.log({key: value for key, value in line.items() if value is not None}, number)
                    yield step
            denoiser.eval()
            if main:
                save_model(pipe, prior, config, out)
            accelerator.wait_for_everyone()

    return steps(last_state)


def accelerator_of(device: torch.device, config: TrainSettings, out: Path) -> Accelerator:
    """Accelerate's view of the run: device, precision, processes and tracker."""
    precision = resolve_precision(config, device)
    reset_accelerate(device, precision)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_dir=out,
    )


def on_gpu(device: torch.device) -> bool:
    """Whether `device` is one that works beside the CPU."""
    return device.type == "cuda"


def positions_of(number: int, config: TrainSettings, process: int, processes: int) -> list[range]:
    """The positions in the run of one process's images of step `number` (from 1), a range per accumulation step."""
    size, parts = config.train_batch_size, range(config.gradient_accumulation_steps)
    first = (number - 1) * total_batch_size(config, processes)
    starts = [first + (part * processes + process) * size for part in parts]
    return [range(start, start + size) for start in starts]


def due(number: int, interval: int) -> bool:
    """Whether step `number` is one of every `interval` steps; interval 0: never."""
    return interval > 0 and number % interval == 0


@contextmanager
def end_of_run(denoiser: Denoiser, accelerator: Accelerator) -> Iterator[None]:
    """Behind this, wherever the run ends, the network is as for generation and the tracker is closed."""
    try:
        yield
    finally:
        denoiser.eval()
        for tracker in accelerator.trackers:
            tracker.finish()


@contextmanager
def network_rng(seed: int, position: int, device: torch.device) -> Iterator[None]:
    """While this holds, torch's own rng is the run's at `position`: for dropout inside the network, if it has any."""
    with torch.random.fork_rng(devices=[device] if on_gpu(device) else []):
        torch.manual_seed(rng.seed_of(seed, "network", position))
        yield


@contextmanager
def weights_as_saved(learner: Learner, denoiser: Denoiser, config: TrainSettings) -> Iterator[None]:
    """While this holds, the network holds the weights that would be saved, and no random number is used up."""
    denoiser.eval()
    # for other shapes the networks would be compiled anew
    eager = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
    with learner.ema_weights(), torch.random.fork_rng(), eager:
        yield
    denoiser.train()


def open_folder(out: Path, config: TrainSettings, step: int, accelerator: Accelerator) -> None:
    """Make the run's folder what it was after step `step`, and start the tracker."""
    settings = settings_of(config)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        discard_drafts(out, "config.yaml", "log.jsonl", "model", UNET)
        discard_drafts(out / "state", "step-*")
        trim_log(out / "log.jsonl", step)
        write_text(out / "config.yaml", yaml.safe_dump({"schema": SCHEMA, **settings}, sort_keys=False))
    if config.report_to:
        texts = {name: "" if value is None else str(value) for name, value in settings.items()}
        accelerator.init_trackers("onbrand", texts)


def finite(loss: float, number: int, out: Path, half: bool) -> float:
    """The loss of step `number`, which is a number; OnbrandError of code diverged if it is not. half: precision."""
    if not math.isfinite(loss):
        raise OnbrandError("diverged", f"the loss is {loss} at step {number}; {diverged(number, out, half)}")
    return loss


def finite_weights(weights: Mapping[str, Tensor], number: int, out: Path, half: bool) -> None:
    """OnbrandError of code diverged for weights that are not finite after step `number`: no state holds such."""
    if not bool(torch.stack([weight.isfinite().all() for weight in weights.values()]).all()):
        reason = diverged(number + 1, out, half)
        raise OnbrandError("diverged", f"weights are not finite after step {number}; {reason}")


def diverged(number: int, out: Path, half: bool) -> str:
    """What a run whose step `number` begins with what is no number leaves in its folder, and what to do."""
    precision = ", or mixed_precision no" if half else ""
    if number == 1:  # no learning rate has done anything yet
        return f"the model, or the latents of the photos, hold what is no number: take another model{precision}"
    step = last_step(out / "state")
    state = f"the last state in {out} is of step {step}" if step else f"{out} has no state"
    return f"{state}: train anew in another output_dir, with a smaller learning_rate{precision}"
