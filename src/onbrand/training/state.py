"""The states a run is resumed from: folders that appear whole or not at all, and load without executing anything."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.io import SEAL, discard, read_content, read_json, whole_file, whole_folder, write_json
from onbrand.options._base import unread
from onbrand.options.former import upgrade
from onbrand.options.train import METHOD_SETTINGS, NEEDS, TrainSettings

STATE, WEIGHTS, EMA, OPTIMIZER = "state.json", "weights.safetensors", "average.safetensors", "optimizer.pt"
LOG = "log.jsonl"
FILES = (WEIGHTS, EMA, OPTIMIZER)
"""Of a state, beside its numbers."""


@dataclass(frozen=True)
class State:
    """Everything a run is between two steps; the random numbers need nothing, being functions of the step."""

    step: int
    """Steps taken."""
    settings: dict[str, Any]
    """Every setting by its flag's name."""
    origin: dict[str, str]
    """Fingerprints of what the run was started with: images, prior, model."""
    counters: dict[str, Any]
    """What else is numbers: the learning rate's course, the EMA's steps, the loss scale."""
    weights: dict[str, Tensor]
    """The weights that learn, by name."""
    ema: dict[str, Tensor]
    """Their EMA, by name; empty without one."""
    optimizer: dict[str, Any]
    """The optimizer's state_dict."""


def save_state(folder: Path, state: State, limit: int) -> Path:
    """Write `folder`/step-00000100 and remove all states but the last `limit`; returns its path."""
    path = folder / f"step-{state.step:08d}"
    with whole_folder(path) as draft:
        save_file(_on_cpu(state.weights), draft / WEIGHTS)
        save_file(_on_cpu(state.ema), draft / EMA)
        torch.save(state.optimizer, draft / OPTIMIZER)
        numbers = {"step": state.step, "settings": state.settings, "origin": state.origin, "counters": state.counters}
        files = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
        write_json(draft / STATE, numbers | {"files": files}, sealed=True)
        # on the disk before the folder has its name: a power cut leaves no state with an empty file
        for file in draft.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    for former in _states(folder)[:-limit]:
        discard(former)
    return path


def load_state(folder: Path) -> State | None:
    """The last state in `folder`; none if no state was finished.

    Raises:
        OnbrandError: it is damaged. The message names the last one before it that is whole: with the damaged ones
            removed, the run goes on from there, to the same weights.
    """
    paths = _states(folder)
    if not paths:
        return None
    try:
        return read_state(paths[-1])
    except OnbrandError as error:
        remedy = f"{folder} holds no whole state: begin anew in another output_dir"
        for number in range(len(paths) - 2, -1, -1):
            with suppress(OnbrandError):
                read_state(paths[number])
                damaged = ", ".join(path.name for path in paths[number + 1 :])
                remedy = f"{paths[number].name} is whole: remove {damaged}, and the same command goes on from there"
                break
        raise OnbrandError("resume", f"{error}; {remedy}") from error


def read_state(path: Path) -> State:
    """The state in one folder, as `save_state` wrote it; nothing in it is executed.

    Raises:
        OnbrandError: a file is missing or damaged, or holds numbers that are none.
    """
    names = [file.name for file in (path / STATE, *(path / name for name in FILES)) if not file.is_file()]
    if names:
        raise OnbrandError("resume", f"{path} is damaged: {', '.join(names)} is missing")
    numbers = read_json(path / STATE)
    if numbers["step"] != int(path.name.removeprefix("step-")):
        raise OnbrandError("resume", f"{path / STATE} is damaged: its step is {numbers['step']}")
    if "files" in numbers and SEAL not in numbers:
        raise OnbrandError("resume", f"{path / STATE} is damaged: {SEAL} is missing")
    for name, recorded in numbers.get("files", {}).items():
        if name not in FILES or _sha256(path / name) != recorded:
            raise OnbrandError("resume", f"{path / name} is damaged: it was changed since it was written")
    optimizer = _open(path / OPTIMIZER, lambda file: torch.load(file, map_location="cpu", weights_only=True))
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= set(optimizer):
        raise OnbrandError("resume", f"{path / OPTIMIZER} is damaged: it holds no optimizer's state")
    return State(
        step=numbers["step"],
        settings=numbers["settings"],
        origin=numbers["origin"],
        counters=numbers["counters"],
        weights=_open(path / WEIGHTS, load_file),
        ema=_open(path / EMA, load_file),
        optimizer=optimizer,
    )


def _open(file: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file. Raises OnbrandError for what is damaged, or holds numbers that are not finite."""
    try:
        content = read(file)
    except Exception as error:  # readers raise whatever their damaged input led them to
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise  # a machine or a disk, not the file; EINVAL is a place in it that is none
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise OnbrandError("resume", f"{file} is damaged: {reason}") from error
    for name, tensor in _tensors(content):
        if not bool(tensor.isfinite().all()):
            raise OnbrandError("resume", f"{file} is damaged: {name} holds numbers that are not finite")
    return content


def _tensors(content: Any, name: str = "it") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts and lists, floating-point ones, by the last name over them."""
    if isinstance(content, Tensor) and content.is_floating_point():
        yield name, content
    elif isinstance(content, dict):
        for key, item in content.items():
            yield from _tensors(item, str(key))
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _tensors(item, name)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def last_step(folder: Path) -> int:
    """Steps taken by the last state in `folder`; 0 if no state was finished."""
    paths = _states(folder)
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


OTHER = {"images": "other images", "prior": "another prior", "model": "another model"}


def check_resumable(
    state: State, config: TrainSettings, total: int, origin: dict[str, str], folder: Path = Path("state")
) -> None:
    """Check that the run is the one that `state` is of.

    Args:
        state: the last state.
        config: the settings now.
        total: total_batch_size now.
        origin: fingerprints of images, prior and model now.
        folder: that the states lie in.

    Raises:
        OnbrandError: the first setting or input that differs, by name.
    """
    check_same(state.settings, config, total)
    for name, value in origin.items():
        if state.origin.get(name) != value:
            steps = f"{state.step} step{'s' if state.step > 1 else ''}"
            raise OnbrandError(
                "resume",
                f"a run is resumed with what it was started with; {folder} holds {steps} of {OTHER.get(name, name)}: "
                "give what they were made with, or another output_dir",
            )


def trim_log(file: Path, step: int) -> None:
    """Remove from a log of one JSON line a step what comes after `step`, a line torn by a kill included."""
    if not file.exists():
        return
    lines: list[bytes] = []
    for line in file.read_bytes().splitlines(keepends=True):
        number = _step_of(line) or len(lines) + 1
        if not line.endswith(b"\n") or number > step:
            break
        lines.append(line)
    with whole_file(file) as draft:
        draft.write_bytes(b"".join(lines))


def _step_of(line: bytes) -> int:
    """The step of a log's line; 0 for a damaged one, which whoever reads the log names."""
    with suppress(OnbrandError):
        return int(read_content(line, "", LOG)["step"])
    return 0


def discard_drafts(folder: Path, *names: str) -> None:
    """Remove what killed processes left of the files and folders so named (patterns), half written or half removed."""
    for name in names:
        for draft in (*folder.glob(f".{name}.*tmp"), *folder.glob(f".{name}.old")):
            if draft.is_dir():
                discard(draft)
            else:
                draft.unlink()


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


STEPLESS = ("constant", "constant_with_warmup")
"""Learning-rate schedules that do not depend on the number of steps: a run with one of them may be made longer."""

SCHEMA = 2
"""Of config.yaml and of a state's settings."""
WEIGHTLESS = {
    "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images",
    "validation_loss_steps", "early_stopping_patience", "report_to", "prefetch", "offload",
}  # fmt: skip
"""Settings that change no weight: a run may be gone on with others."""


def settings_of(config: TrainSettings) -> dict[str, Any]:
    """A run's settings by name as JSON has them, tuples as lists; of options, without places and inputs."""
    values = {name: getattr(config, name) for name in TrainSettings.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def total_batch_size(config: TrainSettings, processes: int) -> int:
    """Images a step over all processes and accumulation steps."""
    return config.train_batch_size * config.gradient_accumulation_steps * processes


def counting(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings but those of a method of training that is not the run's."""
    others = {name for method, names in METHOD_SETTINGS.items() if method != settings["method"] for name in names}
    return {name: value for name, value in settings.items() if name not in others}


def check_same(recorded: dict[str, Any], config: TrainSettings, total: int) -> None:
    """Check that `config` is what a recorded run had.

    What changes no weight may differ: WEIGHTLESS, settings that nothing reads, the processes that a step's images are
    spread over, and more steps under a schedule that does not count them.

    Args:
        recorded: `settings_of` that run and its total_batch_size, or the settings of schema 1.
        config: the settings now.
        total: total_batch_size now.

    Raises:
        OnbrandError: the first setting that differs, with both values.
    """
    if "total_batch_size" not in recorded:
        recorded = recorded | {"total_batch_size": recorded.get("batch")}
    recorded = upgrade("train", recorded)
    present = counting(settings_of(config)) | {"total_batch_size": total}
    idle = {name for name, _ in unread(present, NEEDS)}
    for name, value in present.items():
        before = recorded.get(name)
        longer = name == "max_train_steps" and config.lr_scheduler in STEPLESS and type(before) is int
        same = before == value or (longer and value >= before)
        if same or name in WEIGHTLESS | idle or name == "train_batch_size":
            continue
        raise OnbrandError(
            "resume",
            f"a run is resumed with its own settings; {name} was {before} and now is {value}: set "
            + ("train_batch_size so that it is as before" if name == "total_batch_size" else "it back")
            + ", or give another output_dir",
        )
