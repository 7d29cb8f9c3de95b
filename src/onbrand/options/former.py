"""Names that settings had before, and those that other programs have for them: accepted as flags and in files.

What onbrand itself called them is accepted for one release, with a note; `upgrade` reads settings written by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from onbrand.errors import OnbrandError
from onbrand.options._verb import flag, positional, switches_of
from onbrand.ranks import world

ELSEWHERE = {
    "pretrained_model_name_or_path": "model", "model_name_or_path": "model", "train_data_dir": "images",
    "instance_data_dir": "images", "output": "output_dir", "max_steps": "max_train_steps",
    "optimizer_type": "optimizer", "weight_decay": "adam_weight_decay",
    "min_snr_gamma": "snr_gamma", "network_dim": "rank", "network_alpha": "lora_alpha", "lora_rank": "rank",
    "caption_dropout": "caption_dropout_rate", "proportion_empty_prompts": "caption_dropout_rate",
    "flip_aug": "random_flip", "save_every_n_steps": "checkpointing_steps", "torch_compile": "compile",
    "log_with": "report_to", "cfg_scale": "guidance_scale", "num_images": "num_images_per_prompt",
    "controlnet_model_name_or_path": "controlnet",
}  # fmt: skip
"""Names in diffusers' scripts, kohya's and others' -> ours, where the verb has such a setting and none of that name."""

BETAS = "optim.betas"
"""It became two: adam_beta1, adam_beta2."""
TRAIN = {
    "out": "output_dir", "held": "validation_data", "flip": "random_flip", "offset": "start",
    "first": "start_timestep", "steps": "max_train_steps", "batch": "train_batch_size",
    "prediction": "prediction_type", "lora.rank": "rank", "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules", "lora.text_encoder": "train_text_encoder", "controlnet.unet": "train_unet",
    "loss.dropout": "caption_dropout_rate", "loss.min_snr": "snr_gamma", "loss.noise_offset": "noise_offset",
    "loss.input_perturbation": "input_perturbation", "loss.timesteps": "timestep_range", "optim.name": "optimizer",
    "optim.lr": "learning_rate", "optim.schedule": "lr_scheduler", "optim.warmup": "lr_warmup_steps",
    "optim.weight_decay": "adam_weight_decay", "optim.eps": "adam_epsilon", "optim.clip": "max_grad_norm",
    "optim.ema": "ema_decay", "engine.precision": "mixed_precision",
    "engine.accumulation": "gradient_accumulation_steps", "engine.gradient_checkpointing": "gradient_checkpointing",
    "engine.prefetch": "prefetch", "engine.compile": "compile", "engine.offload": "offload",
    "engine.tf32": "allow_tf32", "log.checkpoint_every": "checkpointing_steps",
    "log.keep": "checkpoints_total_limit", "log.validate_every": "validation_steps",
    "log.pictures": "num_validation_images", "log.patience": "early_stopping_patience",
    "log.held_every": "validation_loss_steps", "log.tracker": "report_to",
}  # fmt: skip
GENERATE = {
    "out": "output_dir", "count": "num_images_per_prompt", "steps": "num_inference_steps",
    "spacing": "timestep_spacing", "karras": "use_karras_sigmas", "guidance": "guidance_scale", "batch": "batch_size",
    "controlnet_scale": "controlnet_conditioning_scale",
}  # fmt: skip
COMPARE = {
    "out": "output_dir", "sets": "prompt_sets", "held": "reference_images", "reader": "attributes",
    "fine_tuning": "max_train_steps", "batch": "train_batch_size", "lr": "learning_rate", "ema": "ema_decay",
    "dropout": "caption_dropout_rate", "precision": "mixed_precision", "sampling": "num_inference_steps",
    "guidance": "guidance_scale", "at_a_time": "batch_size",
}  # fmt: skip
FORMER: dict[str, dict[str, str]] = {
    "fit": {"out": "output_dir", "flip": "random_flip", "batch": "batch_size"},
    "diagnose": {"steps": "num_inference_steps", "spacing": "timestep_spacing", "zero_snr": "rescale_betas_zero_snr"},
    "train": TRAIN,
    "generate": GENERATE,
    "check": {"reader": "attributes"},
    "compare": COMPARE,
    "merge": {"out": "output_dir", "scale": "lora_scale"},
    "export": {},
    "patch": {},
    "push": {},
    "report": {"out": "output_file"},
    "data": {"out": "output_dir", "count": "num_images"},
    "ui": {},
}
"""Verb -> what its settings were called in schema 1 -> what they are called."""

BEFORE: dict[str, dict[str, Any]] = {
    "train": {
        "method": "full", "scheduler": None, "prediction_type": None, "rank": 16, "lora_alpha": None,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "train_text_encoder": False, "train_unet": False,
        "input_perturbation": 0.0, "timestep_range": None, "optimizer": "adamw", "prefetch": None, "compile": False,
        "offload": False, "allow_tf32": False,
    },
    "generate": {
        "handoff": False, "zero_mean": False, "controlnet_conditioning_scale": 1.0, "overlay": False, "look_ahead": 0,
        "look_ahead_projection": True,
    },
}  # fmt: skip
"""Verb -> settings that came after its first runs -> what those ran with: a file that lacks one had this."""


def upgrade(verb: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a verb by their present names, from those that a file of schema 1 holds.

    Lists stand for tuples, as in JSON.
    """
    return BEFORE.get(verb, {}) | renamed(verb, content)


def renamed(verb: str, content: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """Settings of schema 1, flat or in groups, by their present names; those of the present schema pass unchanged.

    processes: that a training is started in, for its batch, which counted the images of all of them.
    """
    flat: dict[str, Any] = {}
    for name, value in content.items():
        grouped = isinstance(value, Mapping) and any(f"{name}.{key}" in FORMER[verb] for key in value)
        flat |= {f"{name}.{key}": item for key, item in value.items()} if grouped else {name: value}
    settings: dict[str, Any] = {}
    for name, value in flat.items():
        if name == BETAS:
            if not (isinstance(value, list | tuple) and len(value) == 2):
                raise OnbrandError("option", f"{name} had two numbers, [0.9, 0.999]; got {value}: give adam_beta1")
            settings |= {"adam_beta1": value[0], "adam_beta2": value[1]}
        elif name == "offset" and value == "none":
            settings["start"] = "noise"
        else:
            settings[FORMER[verb].get(name, name)] = list(value) if isinstance(value, tuple) else value
    if "batch" in flat and verb == "train":
        settings["train_batch_size"] = _per_device(flat["batch"], flat.get("engine.accumulation", 1), processes)
    return settings


def downgrade(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training by the names of schema 1, flat: what the folders of finished comparisons are named by."""
    names = {new: old for old, new in TRAIN.items()}
    old: dict[str, Any] = {}
    old |= {names.get(name, name): list(item) if isinstance(item, tuple) else item for name, item in settings.items()}
    old[BETAS] = [old.pop("adam_beta1"), old.pop("adam_beta2")]
    old["offset"] = "none" if old["offset"] == "noise" else old["offset"]
    old["batch"] = int(old["batch"]) * int(old["engine.accumulation"])
    return old


def _per_device(batch: Any, accumulation: Any, processes: int) -> int:
    """Images per device and accumulation step, of the batch of schema 1, which counted a step's over all of them."""
    counts = all(re.fullmatch(r"[1-9]\d*", str(number)) for number in (batch, accumulation))
    if not counts or int(batch) % (int(accumulation) * processes):
        raise OnbrandError(
            "option",
            f"batch counted a step's images over {processes} processes x {accumulation} accumulation steps; got "
            f"{batch}, which these do not divide: give train_batch_size, the images per device and accumulation step",
        )
    return int(batch) // (int(accumulation) * processes)


def present(verb: str, options: type[Any], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with former and other programs' names of settings replaced by the present ones, and notes.

    Values are taken as they were written before, too: [0.9, 0.99], {"a": "b"}, null, true.
    """
    switches, alone = switches_of(options), positional(options)
    known = {field.name for field in fields(options)}
    several = {field.name for field in fields(options) if "tuple" in str(field.type) or field.type == "Size"}
    line: list[str] = []
    notes: list[str] = []
    groups = _grouped(arguments)
    accumulation = next((words[0] for name, words in groups if name == "engine.accumulation" and words), "1")
    for name, values in groups:
        if name not in known and (name in FORMER[verb] or (name == BETAS and verb == "train")):
            value = _written_before(values[0]) if values else True
            counted = verb == "train" and name == "batch"
            content = {name: value} | ({"engine.accumulation": accumulation} if counted else {})
            settings = renamed(verb, content, world())
            if counted:
                del settings["gradient_accumulation_steps"]
            said = " and ".join(f"--{key}" for key in settings)
            notes.append(f"--{name} is now {said}; the former name goes with the next release")
            for key, item in settings.items():
                line += (
                    _words(key, [item], key in switches) if isinstance(item, str) else flag(key, item, key in switches)
                )
            line += values[1:]
        elif name not in known and ELSEWHERE.get(name) == alone:
            line = [*values[:1], *line, *values[1:]]
        else:
            present_name = ELSEWHERE[name] if name not in known and ELSEWHERE.get(name) in known else name
            if present_name in several and len(values) == 1 and isinstance(_written_before(values[0]), list):
                line += flag(present_name, _written_before(values[0]))
            else:
                line += _words(present_name, values, present_name in switches)
    return line, notes


def _written_before(word: str) -> Any:
    """A word of a former command line: a JSON list or object, null, or itself."""
    if word == "null":
        return None
    if word.startswith(("[", "{")):
        with suppress(json.JSONDecodeError):
            return json.loads(word)
    return word


def _grouped(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name of the flag, the words after it), "" for words before the first; --a=b is --a b, dashes are underscores."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in arguments:
        if re.match(r"--[A-Za-z]", word):
            name, equals, inline = word[2:].partition("=")
            groups.append((name.replace("-", "_"), [inline] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _words(name: str, values: Sequence[str], switch: bool) -> list[str]:
    """A flag and its words as they are; --flip true is --flip, null is None."""
    if not name:
        return list(values)
    values = ["None" if value == "null" else value for value in values]
    if switch and values and values[0].lower() in ("true", "false"):
        return [*flag(name, values[0].lower() == "true", True), *values[1:]]
    return [f"--{name}", *values]
