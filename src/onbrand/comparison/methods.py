"""Methods are data, {train: settings, generate: settings}: presets by their names, or a YAML file of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from onbrand.comparison.presets import filled, names, preset_method, presets, refuse, without
from onbrand.errors import OnbrandError
from onbrand.io import read_yaml
from onbrand.options.compare import CompareSettings
from onbrand.options.generate import SamplingSettings
from onbrand.options.train import TrainSettings

SCHEDULES = ("zero-snr", "small-alpha", "v")
"""Changes of the scheduler that a training starts with: zero terminal SNR with v-prediction and trailing spacing (Lin
et al. 2023), the paper's smaller alpha_T, abar_T = 1 / d (its supplementary), v-prediction with trailing spacing."""
PRIORS = re.compile(r"zero|reduced-rank|cca|leak|leak-dct|few[1-9]\d*")
"""Priors beside the brand's, fitted to the same latents."""
KEYS = ("train", "generate", "schedule", "paste", "prompts", "words")
"""What a method has."""
Settings = TypeVar("Settings", TrainSettings, SamplingSettings)


@dataclass(frozen=True)
class Training:
    """How a method's weights come about."""

    name: str
    """As it is written, options and all."""
    base: str
    """The preset that it is, without options but v; "own": none; "stock": no training. Run folders begin with it."""
    words: str
    """For people."""
    config: TrainSettings | None
    """None: no training."""
    prior: str = ""
    """Name of the prior that it is trained with; "": the brand's."""
    schedule: str = ""
    """The change of scheduler that it starts with (SCHEDULES), or nothing."""


@dataclass(frozen=True)
class Method:
    """One line of a comparison."""

    name: str
    training: Training
    start: SamplingSettings
    words: str
    """How images start, for people."""
    prior: str = ""
    """Name of the prior that it starts from; "": the brand's."""
    paste: bool = False
    """The background is replaced afterwards."""
    requests: str = ""
    """Name of the set of requests; "": the prompts."""


def read_methods(texts: str | Path | Iterable[str | Path], config: CompareSettings) -> list[Method]:
    """Reads what `--methods` says.

    Args:
        texts: names of methods, several in one text apart by commas or spaces, and .yaml files
        config: what all methods share

    Returns:
        The methods in order, all of a file where it stands.

    Raises:
        OnbrandError: a name that is no method's, or a file with a method, a key or a value that is wrong.
    """
    methods: list[Method] = []
    for text in map(str, [texts] if isinstance(texts, str | Path) else texts):
        whole = text.endswith((".yaml", ".yml")) and Path(text).is_file()
        for name in [text] if whole else re.split(r"[,\s]+", text):
            yaml_file = name.endswith((".yaml", ".yml"))
            methods += read_file(name, config) if yaml_file else [read_method(name, config)]
    return methods


def read_method(name: str, config: CompareSettings) -> Method:
    """The method called TRAINING[:option...]/START[+option...][@set], of presets joined.

    Raises:
        OnbrandError: a part that is no preset; it lists what there is.
    """
    data, words = preset_method(name)
    written = name.partition("/")[0]
    base = written.partition(":")[0] + ("-v" if data.get("schedule") == "v" else "")
    return _method(name, data, words, config, f"method {name!r}", written, base)


def read_file(file: str | Path, config: CompareSettings) -> list[Method]:
    """The methods of a YAML file, {name: {train: {...}, generate: {...}}}.

    Raises:
        OnbrandError: it cannot be read, is no mapping, or has a name, a key or a value that is wrong.
    """
    try:
        content = read_yaml(Path(file))
    except (OSError, ValueError) as error:
        raise OnbrandError("method", f"{file} must be a YAML file that can be read: {error}") from error
    if not isinstance(content, Mapping) or not content:
        found = type(content).__name__ if content else "nothing"
        raise OnbrandError("method", f"{file} must hold methods, NAME: {{train: ..., generate: ...}}; it holds {found}")
    return [_own_method(name, data, config, f"{file}: method {name!r}") for name, data in content.items()]


def _own_method(name: Any, data: Any, config: CompareSettings, where: str) -> Method:
    """A method of a file."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or name in ("real", "autoencoder"):
        refuse(where, "a name has letters, digits, _, - and ., and is not real or autoencoder, which are rows already")
    if not isinstance(data, Mapping):
        refuse(where, f"a method has the keys {', '.join(KEYS)}; got {data!r}")
    for key, value in data.items():
        if key == "prior":
            refuse(where, "prior is a key of train and of generate: move it there")
        if key not in KEYS:
            refuse(where, f"it has the key {key!r}, which is none of {', '.join(KEYS)}{_close(key, KEYS)}")
        kind = {"paste": bool, "prompts": str, "words": str, "schedule": Literal[SCHEDULES]}.get(key)
        if kind:
            _converted(kind, value, where, key)
    train, generate = data.get("train"), data.get("generate") or {}
    if train is None and data.get("schedule"):
        refuse(where, f"schedule is what a training starts with; got {data['schedule']!r} and no train: add train")
    words = data.get("words") or ("no training" if train is None else _listed(train) or "default training")
    return _method(name, {**data, "generate": generate}, (words, _listed(generate) or "default start"), config, where)


def _listed(settings: Any) -> str:
    """Settings in words, as YAML has them."""
    if not isinstance(settings, Mapping):
        return ""
    return str(yaml.safe_dump(dict(settings), default_flow_style=True, sort_keys=False, width=10_000)).strip(" {}\n")


def _method(
    name: str, data: Mapping[str, Any], words: tuple[str, str], config: CompareSettings, where: str,
    written: str = "", base: str = "",
) -> Method:  # fmt: skip
    """A method from its data, the comparison's settings in place of those that it leaves out."""
    schedule = data.get("schedule", "")
    training = Training(written or name, base or "stock", words[0], None)
    if data.get("train") is not None:
        shared = {
            "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": min(50, config.max_train_steps // 20),
            "checkpointing_steps": 100, "checkpoints_total_limit": 1,
        }  # fmt: skip
        if isinstance(data["train"], Mapping) and data["train"].get("lr_scheduler") == "constant":
            shared["lr_warmup_steps"] = 0
        if isinstance(data["train"], Mapping) and data["train"].get("start") == "noise":
            shared["gain"] = "window"  # nothing is matched, and the presets say so
        learnt, prior = _settings(TrainSettings, "train", data["train"], shared, config, where)
        base = base or _base(learnt, schedule, prior)
        training = Training(written or name, base, words[0], learnt, prior, schedule)
    shared = {"zero_mean": False, "look_ahead": 0}
    start, prior = _settings(SamplingSettings, "generate", data["generate"], shared, config, where)
    if start.overlay and training.config and training.config.method != "controlnet":
        refuse(where, "overlay lays control images over a ControlNet's images: train with :controlnet, or in a file "
                "with method controlnet")  # fmt: skip
    return Method(name, training, start, words[1], prior, data.get("paste", False), data.get("prompts", ""))


def _base(config: TrainSettings, schedule: str, prior: str) -> str:
    """The name of the preset whose options could make it this training; "own" with what no setting says if none."""

    def objective(one: TrainSettings) -> tuple[Any, ...]:
        return one.start, one.gain, one.noise_offset, *((one.k, one.draw) if one.start == "pca" else ())

    for pattern in names("train"):
        preset = filled(presets()[pattern], {"<N>": config.k})
        if preset["train"] is None or ("<N>" in pattern and config.start != "pca"):
            continue
        same = objective(TrainSettings(**without(preset["train"], "prior"))) == objective(config)
        others = preset["train"].get("prior", ""), preset.get("schedule", "")
        if same and others == (prior, "" if schedule == "v" else schedule):
            return pattern.replace("<N>", str(config.k)) + ("-v" if schedule == "v" else "")
    return "-".join(filter(None, ("own", prior, schedule)))


def _settings(
    options: type[Settings], half: str, data: Any, shared: Mapping[str, Any], config: CompareSettings, where: str
) -> tuple[Settings, str]:
    """Settings of `train` or `generate` from a part of a method, and the name of its prior."""
    if not isinstance(data, Mapping):
        refuse(where, f"{half} holds settings of `onbrand {half}`, NAME: VALUE; got {data!r}")
    hints = get_type_hints(options)
    defaults = {field.name: getattr(config, field.name) for field in fields(CompareSettings) if field.name in hints}
    defaults |= shared
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "prior":
            if not isinstance(value, str) or not PRIORS.fullmatch(value):
                rule = "zero, few50 (of 50 photos a class), reduced-rank, cca, leak or leak-dct"
                refuse(where, f"{half}.prior is {rule}; got {value!r}: take one, or leave it out for the brand's")
        elif key not in hints:
            refuse(where, f"{half} has no setting {key!r}{_close(key, hints)}; `onbrand {half} --help` lists them")
        else:
            values[key] = _converted(hints[key], value, where, f"{half}.{key}")
    # where a value is the default, the default stays: 1 and 1.0 would name two folders
    values = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    try:
        return options(**{**defaults, **values}), data.get("prior", "")
    except OnbrandError as error:
        refuse(where, f"{half}: {error}")


def _close(name: Any, others: Iterable[str]) -> str:
    close = get_close_matches(str(name), list(others), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _converted(hint: Any, value: Any, where: str, key: str) -> Any:
    """A value of YAML as its setting has it: lists are tuples."""
    try:
        return _value(hint, value)
    except ValueError:
        refuse(where, f"{key} must be {_expected(hint)}; got {value!r}")


def _value(hint: Any, value: Any) -> Any:
    """The value of type `hint`; ValueError if it is none."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(ValueError):
                return _value(part, value)
    elif origin is Literal:
        value = "no" if value is False else value  # as YAML reads no
        if value in parts:
            return value
    elif origin is tuple and isinstance(value, list) and parts[-1] is Ellipsis:
        return tuple(_value(parts[0], item) for item in value)
    elif origin is tuple and isinstance(value, list) and len(parts) == len(value):
        return tuple(map(_value, parts, value))
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-5 as a text
    elif type(value) is hint:
        return value
    raise ValueError


def _expected(hint: Any) -> str:
    """A type in words."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_expected, parts))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(hint) is tuple:
        return f"a list, each {_expected(parts[0])}" if parts[-1] is Ellipsis else f"a list of {len(parts)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, "null")
