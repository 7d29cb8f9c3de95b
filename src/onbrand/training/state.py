"""The states a run is resumed from: folders that appear whole or not at all, and load without executing anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onbrand.options.train import TrainConfig


@dataclass(frozen=True)
class State:
    """Everything a run is between two steps; the random numbers need nothing, being functions of the step."""

    step: int
    """Steps taken."""
    settings: dict[str, Any]
    """Every setting by its flag's name."""
    origin: dict[str, str]
    """Fingerprints of what the run was started with: pictures, prior, model."""
    counters: dict[str, Any]
    """What else is numbers: the learning rate's course, the running mean's steps, the loss scale."""
    weights: dict[str, Tensor]
    """The weights that learn, by name."""
    average: dict[str, Tensor]
    """Their running mean; empty without one."""
    optimizer: dict[str, Any]
    """The optimiser's state_dict."""


def save(folder: Path, state: State, keep: int) -> Path:
    """Writes `folder`/step-00000100 and removes all but the last `keep`; returns its path."""
    path = folder / f"step-{state.step:08d}"
    draft = folder / f".{path.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_plain(state.weights), draft / "weights.safetensors")
    save_file(_plain(state.average), draft / "average.safetensors")
    torch.save(state.optimizer, draft / "optimizer.pt")
    numbers = {"step": state.step, "settings": state.settings, "origin": state.origin, "counters": state.counters}
    (draft / "state.json").write_text(json.dumps(numbers, indent=2))
    for file in draft.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    discard(path)
    os.replace(draft, path)
    for old in _found(folder)[:-keep]:
        discard(old)
    return path


def load(folder: Path) -> State | None:
    """The last state in `folder`; none where no state was finished."""
    found = _found(folder)
    if not found:
        return None
    path = found[-1]
    numbers = json.loads((path / "state.json").read_text())
    return State(
        **numbers,
        weights=load_file(path / "weights.safetensors"),
        average=load_file(path / "average.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
    )


def reached(folder: Path) -> int:
    """Steps taken by the last state in `folder`; 0 where no state was finished."""
    found = _found(folder)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def check_resumable(state: State, config: TrainConfig, origin: dict[str, str]) -> None:
    """Raises ValueError naming the first setting or input in which the run differs from the one `state` is of."""
    check_same(state.settings, config)
    for name, value in origin.items():
        if state.origin.get(name) != value:
            raise ValueError(
                f"a run is resumed with what it was started with; the {name} given now is not what the first "
                f"{state.step} steps were made with: give that, or another output folder"
            )


def trim_log(file: Path, step: int) -> None:
    """Removes from a log of one JSON line a step what comes after `step`, a line torn by a kill included."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text("".join(kept))
    os.replace(draft, file)


def discard(folder: Path) -> None:
    """Removes a folder such that a kill in between leaves no half of it under its name."""
    if folder.exists():
        rubbish = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(rubbish, ignore_errors=True)
        os.replace(folder, rubbish)
        shutil.rmtree(rubbish)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


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


STEPLESS = ("constant", "constant_with_warmup")
"""Learning-rate schedules that do not depend on the number of steps: a run with one of them may be made longer."""

LATER: dict[str, Any] = {
    "method": "full",
    "prediction": None,
    "lora.rank": 16,
    "lora.alpha": None,
    "lora.targets": ["to_q", "to_k", "to_v", "to_out.0"],
    "lora.text_encoder": False,
    "controlnet.unet": False,
    "loss.input_perturbation": 0.0,
    "loss.timesteps": None,
    "optim.name": "adamw",
    "engine.prefetch": None,
    "engine.compile": False,
    "engine.offload": False,
    "engine.tf32": False,
}
"""Settings that came after the first runs -> what those ran with: a run that does not know of one had this."""
WEIGHTLESS = ("log.", "engine.prefetch", "engine.offload")
"""How the names of settings begin that change no weight: a run may be gone on with others."""


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its flag's name, such as {"optim.lr": 1e-05}; tuples as lists, so that it equals its JSON."""
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: list(item) if isinstance(item, tuple) else item for key, item in inner.items()}
    return flat


def counting(flat: dict[str, Any]) -> dict[str, Any]:
    """The settings but those of a method of training that is not the run's."""
    others = [f"{method}." for method in ("lora", "controlnet") if method != flat["method"]]
    return {name: value for name, value in flat.items() if not name.startswith(tuple(others))}


def check_same(flat: dict[str, Any], config: TrainConfig) -> None:
    """Raises ValueError naming the first setting in which `config` differs from the run that `flat` describes.

    What changes no weight may differ: WEIGHTLESS, and more steps under a schedule that does not count them.
    """
    flat = LATER | flat
    for name, value in counting(flatten(config)).items():
        longer = name == "steps" and config.optim.schedule in STEPLESS and value >= flat[name]
        if name.startswith(WEIGHTLESS) or longer or flat[name] == value:
            continue
        raise ValueError(
            f"a run is resumed with its own settings; {name} was {flat[name]} and now is {value}: set it back, "
            "or give another output folder"
        )
