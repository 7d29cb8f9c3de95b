"""Presets by name: TRAINING[:option...]/START[+option...][@set] joins entries of methods.yaml to a method's data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from onbrand.errors import OnbrandError
from onbrand.options.compare import DEFAULT_METHODS

PRESETS = Path(__file__).with_name("methods.yaml")
NUMBERS = {"<N>": r"(?P<N>[1-9]\d*)", "<M>": r"(?P<M>[1-9]\d*)", "<X>": r"(?P<X>\d*\.?\d+)"}
"""Numbers in the names of presets."""
OPTIONS = {"train": ":", "generate": "+"}
"""What an option of a training, or of a start, begins with."""


def preset_method(name: str) -> tuple[dict[str, Any], tuple[str, str]]:
    """A method by name as data, as a file of one's own would hold it, and the words of its training and its start."""
    both, _, prompts = name.partition("@")
    training, slash, start = both.partition("/")
    if not slash:
        refuse(f"method {name!r}", "a method is TRAINING/START, or a .yaml file of methods")
    learnt, first = _joined("train", training, f"method {name!r}")
    sampled, second = _joined("generate", start, f"method {name!r}")
    return learnt | sampled | ({"prompts": prompts} if prompts else {}), (first, second)


def solvers() -> dict[str, str]:
    """Scheduler class -> the short name of the preset that samples with it."""
    parts = {name[1:]: data.get("generate", {}) for name, data in presets().items() if name.startswith("+")}
    return {part["scheduler"]: name for name, part in parts.items() if "scheduler" in part}


def listing() -> str:
    """The presets with their words and settings, for people."""
    titles = {
        "\nTrainings": names("train"), "\nOptions of a training": names("train", option=True),
        "\nStarts": names("generate"), "\nOptions of a start": names("generate", option=True),
    }  # fmt: skip
    lines = ["Methods by default, TRAINING[:option...]/START[+option...][@set]"]
    for name in DEFAULT_METHODS:
        data, words = preset_method(name)
        lines += _entry(name, data, "; ".join(words))
    for title, group in titles.items():
        lines.append(title)
        for name in group:
            data = presets()[name]
            lines += _entry(name, data, data["words"])
    return "\n".join(lines) + "\n"


def _entry(name: str, data: Mapping[str, Any], words: str) -> list[str]:
    settings = {key: value for key, value in data.items() if key != "words"}
    flow = yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=10_000).strip()
    return [f"  {name:<26} {words}", f"  {'':<26} {flow}"]


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name -> what methods.yaml says of it."""
    return cast("dict[str, dict[str, Any]]", yaml.safe_load(PRESETS.read_text(encoding="utf-8")))


def names(half: str, option: bool = False) -> list[str]:
    """Names of the presets that are trainings (half "train") or starts ("generate"), or of the options of these."""
    if option:
        return [name for name in presets() if name.startswith(OPTIONS[half])]
    return [name for name, data in presets().items() if half in data and name[0] not in OPTIONS.values()]


def _joined(half: str, text: str, where: str) -> tuple[dict[str, Any], str]:
    """A training or a start with its options as data without words, and its words."""
    mark, noun = OPTIONS[half], {"train": "training", "generate": "start"}[half]
    base, *options = text.split(mark)
    preset = _find(base, names(half))
    if preset is None:
        refuse(where, f"a {noun} is one of {', '.join(names(half))}; got {base!r}")
    words, settings, others = [preset["words"]], preset[half], without(preset, half, "words")
    changes: dict[str, Any] = {}
    for option in options:
        part = _find(mark + option, names(half, option=True))
        if part is None or settings is None:
            known = "none without a training" if settings is None else ", ".join(names(half, option=True))
            refuse(where, f"a {noun}'s options are {known}; got {mark + option!r}")
        twice = set(part.get(half, {})) & set(changes)
        if twice:
            refuse(where, f"two options set {min(twice)}, the second is {mark + option!r}: take one of them out")
        changes |= part.get(half, {})
        others |= without(part, half, "words")
        words.append(part["words"])
    return {half: settings and settings | changes} | others, ", ".join(words)


def without(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping without some of its keys."""
    return {key: value for key, value in data.items() if key not in keys}


def _find(name: str, patterns: Iterable[str]) -> dict[str, Any] | None:
    """The preset of that name, its numbers filled in."""
    for pattern in patterns:
        expression = re.escape(pattern)
        for sign, digits in NUMBERS.items():
            expression = expression.replace(sign, digits)
        match = re.fullmatch(expression, name)
        if match:
            numbers = {f"<{sign}>": int(n) if n.isdigit() else float(n) for sign, n in match.groupdict().items()}
            return cast("dict[str, Any]", filled(presets()[pattern], numbers))
    return None


def filled(value: Any, numbers: Mapping[str, int | float]) -> Any:
    """A part of a preset with numbers in place of <N>, <M>, <X>."""
    if isinstance(value, Mapping):
        return {key: filled(item, numbers) for key, item in value.items()}
    if not isinstance(value, str) or value in numbers:
        return numbers[value] if isinstance(value, str) else value
    for sign, number in numbers.items():
        value = value.replace(sign, str(number) if isinstance(number, int) else f"{number:g}")
    return value


def refuse(where: str, rule: str) -> NoReturn:
    """OnbrandError of a method."""
    raise OnbrandError("method", f"{where}: {rule}")
