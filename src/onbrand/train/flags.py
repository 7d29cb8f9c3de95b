"""A run's settings by their flags' names: what is recorded of it, and whether it may be gone on with. No torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .config import TrainConfig

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
