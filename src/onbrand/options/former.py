"""Names that settings had before, and those that other programs have for them: accepted as flags and in files.

What onbrand itself called them is accepted for one release, with a note; `upgrade` reads settings written by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from onbrand.options._verb import flag, positional, switches_of

ELSEWHERE = {
    "pretrained_model_name_or_path": "model", "model_name_or_path": "model", "train_data_dir": "images",
    "instance_data_dir": "images", "output": "output_dir", "max_steps": "max_train_steps",
    "optimizer_type": "optimizer", "adam_eps": "adam_epsilon", "weight_decay": "adam_weight_decay",
    "min_snr_gamma": "snr_gamma", "network_dim": "rank", "network_alpha": "lora_alpha", "lora_rank": "rank",
    "caption_dropout": "caption_dropout_rate", "proportion_empty_prompts": "caption_dropout_rate",
    "flip_aug": "random_flip", "save_every_n_steps": "checkpointing_steps", "torch_compile": "compile",
    "log_with": "report_to", "cfg_scale": "guidance_scale", "num_images": "num_images_per_prompt",
    "steps": "num_inference_steps", "validation_images": "num_validation_images",
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
    "report": {"out": "output_file"},
    "data": {"out": "output_dir", "count": "num_images"},
}
"""Verb -> what its settings were called in schema 1 -> what they are called."""

BEFORE: dict[str, dict[str, Any]] = {
    "train": {
        "method": "full", "prediction_type": None, "rank": 16, "lora_alpha": None,
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


def renamed(verb: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of schema 1, flat or in groups, by their present names; those of the present schema pass unchanged."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        grouped = isinstance(value, Mapping) and any(f"{name}.{key}" in FORMER[verb] for key in value)
        flat |= {f"{name}.{key}": item for key, item in value.items()} if grouped else {name: value}
    settings: dict[str, Any] = {}
    for name, value in flat.items():
        if name == BETAS:
            settings |= {"adam_beta1": value[0], "adam_beta2": value[1]}
        elif name == "offset" and value == "none":
            settings["start"] = "noise"
        else:
            settings[FORMER[verb].get(name, name)] = list(value) if isinstance(value, tuple) else value
    if "batch" in flat and verb == "train":  # it counted all parts of a step
        settings["train_batch_size"] = flat["batch"] // flat.get("engine.accumulation", 1)
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


def present(verb: str, options: type[Any], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with former and other programs' names of settings replaced by the present ones, and notes.

    Values of former settings may be JSON, as they were: [0.9, 0.99], null, true.
    """
    switches, alone = switches_of(options), positional(options)
    known = {field.name for field in fields(options)}
    line: list[str] = []
    notes: list[str] = []
    groups = _grouped(arguments)
    parts = next((int(given[0]) for name, given in groups if name == "engine.accumulation" and given), 1)
    for name, values in groups:
        if name in known or name not in (*FORMER[verb], *ELSEWHERE, BETAS):
            line += _words(name, values, name in switches)
        elif name in FORMER[verb] or name == BETAS:
            now = renamed(verb, {name: yaml.safe_load(values[0]) if values else True})
            if name == "batch" and verb == "train":
                now["train_batch_size"] //= parts
            said = " and ".join(f"--{key}" for key in now)
            notes.append(f"--{name} is now {said}; the former name goes with the next release")
            line += [word for key, item in now.items() for word in flag(key, item, key in switches)] + values[1:]
        elif ELSEWHERE[name] == alone:
            line = [*values[:1], *line, *values[1:]]
        else:
            line += _words(ELSEWHERE[name], values, ELSEWHERE[name] in switches)
    return line, notes


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
    """A flag and its words as they are; values of before are taken too: --flip true, --methods '["a", "b"]', null."""
    if not name:
        return list(values)
    if len(values) == 1 and values[0].startswith("["):
        return flag(name, yaml.safe_load(values[0]))
    values = ["None" if value == "null" else value for value in values]
    if switch and values and values[0].lower() in ("true", "false"):
        return [*flag(name, values[0].lower() == "true", True), *values[1:]]
    return [f"--{name}", *values]
