"""The states a run is resumed from: folders that appear whole or not at all, and load without executing anything."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.io import discard, read_json, whole_folder, write_json, write_text
from onbrand.options.former import upgrade
from onbrand.options.train import METHOD_SETTINGS, TrainSettings


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
        save_file(_on_cpu(state.weights), draft / "weights.safetensors")
        save_file(_on_cpu(state.ema), draft / "average.safetensors")
        torch.save(state.optimizer, draft / "optimizer.pt")
        numbers = {"step": state.step, "settings": state.settings, "origin": state.origin, "counters": state.counters}
        write_json(draft / "state.json", numbers)
        # on the disk before the folder has its name: a power cut leaves no state with an empty file
        for file in draft.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    for former in _states(folder)[:-limit]:
        discard(former)
    return path


def load_state(folder: Path) -> State | None:
    """The last state in `folder`; none if no state was finished."""
    paths = _states(folder)
    if not paths:
        return None
    path = paths[-1]
    numbers = read_json(path / "state.json")
    return State(
        step=numbers["step"],
        settings=numbers["settings"],
        origin=numbers["origin"],
        counters=numbers["counters"],
        weights=load_file(path / "weights.safetensors"),
        ema=load_file(path / "average.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
    )


def last_step(folder: Path) -> int:
    """Steps taken by the last state in `folder`; 0 if no state was finished."""
    paths = _states(folder)
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def check_resumable(state: State, config: TrainSettings, total: int, origin: dict[str, str]) -> None:
    """Check that the run is the one that `state` is of.

    Args:
        state: the last state.
        config: the settings now.
        total: total_batch_size now.
        origin: fingerprints of images, prior and model now.

    Raises:
        OnbrandError: the first setting or input that differs, by name.
    """
    check_same(state.settings, config, total)
    for name, value in origin.items():
        if state.origin.get(name) != value:
            raise OnbrandError(
                "resume",
                f"a run is resumed with what it was started with; the {name} given now is not what the first "
                f"{state.step} steps were made with: give that, or another output_dir",
            )


def trim_log(file: Path, step: int) -> None:
    """Remove from a log of one JSON line a step what comes after `step`, a line torn by a kill included."""
    if not file.exists():
        return
    lines = []
    for line in file.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        lines.append(line)
    write_text(file, "".join(lines))


def discard_drafts(folder: Path, *names: str) -> None:
    """Remove what killed processes left of the files and folders so named (patterns), half written or half removed."""
    for name in names:
        for draft in (*folder.glob(f".{name}.*tmp"), *folder.glob(f".{name}.old")):
            if draft.is_dir():
                discard(draft)
            else:
                draft.unlink()


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


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

    What changes no weight may differ: WEIGHTLESS, the processes that a step's images are spread over, and more steps
    under a schedule that does not count them.

    Args:
        recorded: `settings_of` that run and its total_batch_size, or the settings of schema 1.
        config: the settings now.
        total: total_batch_size now.

    Raises:
        OnbrandError: the first setting that differs, with both values.
    """
    if "total_batch_size" not in recorded:
        recorded = recorded | {"total_batch_size": recorded["batch"]}
    recorded = upgrade("train", recorded)
    present = counting(settings_of(config)) | {"total_batch_size": total}
    for name, value in present.items():
        longer = name == "max_train_steps" and config.lr_scheduler in STEPLESS and value >= recorded[name]
        if name in WEIGHTLESS or name == "train_batch_size" or longer or recorded[name] == value:
            continue
        raise OnbrandError(
            "resume",
            f"a run is resumed with its own settings; {name} was {recorded[name]} and now is {value}: set "
            + ("train_batch_size so that it is as before" if name == "total_batch_size" else "it back")
            + ", or give another output_dir",
        )
