"""A LoRA's file -> the pair of matrices that changes each layer of this model, and what in the file did not take.

What is no pair is written as one: a LoHa, a LoKr or a DoRA as the change W' - W that it makes, times the identity. So
all of them are put on, scaled, merged and taken off again in one way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import PEFT_LORA
from onbrand.models.denoiser import NAME
from onbrand.models.lora_names import Layer, family_of, kind_of, layer_of, layers_of, split
from onbrand.models.weights import check_numbers, few, read_config, read_safetensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PEFT_CONFIG = "adapter_config.json"
"""Beside a LoRA of peft's: its alpha, which the file itself does not say."""
DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""In the metadata of a LoRA of diffusers': the same."""
PARTS = {"unet": "the UNet", "text_encoder": "the text encoder"}


@dataclass(frozen=True, eq=False)
class Pair:
    """The change of one layer: alpha / r times up (o, r[, 1, 1]) after down (r, i[, h, w])."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner width r."""
        return len(self.down)

    @property
    def has_effect(self) -> bool:
        """Whether it changes anything."""
        return self.alpha != 0 and bool(self.down.any()) and bool(self.up.any())


@dataclass(frozen=True)
class Pairs:
    """What a LoRA's file holds for this model."""

    file: Path
    layers: Mapping[Layer, Pair]
    """The layers that it changes."""
    count: int
    """Pairs that are in the file."""
    others: Mapping[str, str]
    """What did not take -> why."""
    dora: bool
    """Whether one of them sets a layer's size, which is no sum that could be taken out again."""

    def of(self, part: str) -> dict[str, Pair]:
        """The pairs of one part of the pipeline, by the names of its layers."""
        return {name: pair for (place, name), pair in self.layers.items() if place == part}

    def __str__(self) -> str:
        parts = [f"{len(self.of(part))} of {words}" for part, words in PARTS.items() if self.of(part)]
        return (
            f"{len(self.layers)} of {self.count} pairs of {self.file.name} took in {len(self.layers)} layers "
            f"({', '.join(parts)})"
        )

    @property
    def rest(self) -> str:
        """What did not take, with the first names; "" if all did."""
        reasons = dict.fromkeys(self.others.values())
        names = {reason: [name for name, why in self.others.items() if why == reason] for reason in reasons}
        return "; ".join(f"{reason}: {few(listed)}" for reason, listed in names.items())


def read_pairs(file: Path, pipe: StableDiffusionPipeline) -> Pairs:
    """The pairs of a LoRA's file for the pipeline's UNet and text encoder, in any naming of `lora_names`.

    OnbrandError if the file is damaged, holds no LoRA, numbers that are none or several LoRAs, is for another kind of
    model, or if nothing of it takes.
    """
    tensors, metadata = read_safetensors(file, "lora")
    check_numbers(tensors, file, "lora")
    groups: dict[str, dict[str, Tensor]] = {}
    others, adapters = {}, set()
    for name, tensor in tensors.items():
        parts = split(name)
        if parts is None:
            others[name] = "not read"
        else:
            groups.setdefault(parts[0], {})[parts[1]] = tensor
            adapters.add(parts[2])
    kind = kind_of(others)
    if not groups:
        is_what = f"is {kind}" if kind else f"holds {few(sorted(others)) or 'nothing'}"
        raise OnbrandError("lora", f"{file.absolute()} holds no LoRA: it {is_what}; give a LoRA's file")
    if len(adapters) > 1:
        raise OnbrandError(
            "lora",
            f"{file.absolute()} holds {len(adapters)} LoRAs ({', '.join(sorted(adapters))}): write each into a file",
        )
    family = family_of(groups, metadata)
    if family:
        raise OnbrandError(
            "lora", f"{file.absolute()} is for {family}; this model is a Stable Diffusion 1 or 2: take a LoRA for that"
        )
    others = {name: f"not read ({kind})" if kind else why for name, why in others.items()}
    pairs: dict[Layer, Pair] = {}
    sources: dict[Layer, str] = {}
    names, configs = layers_of(pipe), _configs(file, metadata)
    for name, parts_of_layer in groups.items():
        layer = layer_of(name, names)
        if layer is None:
            others[name] = "this model has no such layer"
            continue
        if layer in sources:
            raise OnbrandError(
                "lora", f"{file.absolute()} changes one layer twice, as {sources[layer]} and as {name}: take one out"
            )
        sources[layer] = name
        weight = getattr(pipe, layer[0]).get_submodule(layer[1]).weight.detach()
        pair = _pair(parts_of_layer, weight, _config_of(configs, layer), f"{file.absolute()}: {name}")
        if isinstance(pair, str):
            others[name] = pair
        else:
            pairs[layer] = pair
    if not pairs:
        reasons = Pairs(file, {}, len(groups), others, False).rest
        raise OnbrandError(
            "lora",
            f"none of the {len(groups)} pairs of {file.absolute()} takes ({reasons}): take a LoRA for this kind of "
            "model, or give the model that it was trained on",
        )
    dora = any({"dora_scale", "lora_magnitude_vector"} & set(groups[name]) for name in sources.values())
    return Pairs(file, pairs, len(groups), others, dora)


def put(network: Any, pairs: Mapping[str, Pair]) -> None:
    """The pairs beside the network's layers, by peft, under NAME; the layers' own weights stay as they are."""
    ranks = {f"^{re.escape(name)}": pair.rank for name, pair in pairs.items()}
    alphas = {f"^{re.escape(name)}": pair.alpha for name, pair in pairs.items()}
    config = LoraConfig(
        target_modules="|".join(re.escape(name) for name in pairs), rank_pattern=ranks, alpha_pattern=alphas
    )
    state = {f"{name}.lora_A.weight": pair.down for name, pair in pairs.items()}
    state |= {f"{name}.lora_B.weight": pair.up for name, pair in pairs.items()}
    dtype = network.dtype
    state = {name: weight.to(dtype).contiguous() for name, weight in state.items()}
    inject_adapter_in_model(config, network, NAME, low_cpu_mem_usage=True)
    set_peft_model_state_dict(network, state, NAME, low_cpu_mem_usage=True)
    network._hf_peft_config_loaded = True  # as diffusers and transformers mark it
    network.eval()


def _pair(parts: Mapping[str, Tensor], weight: Tensor, config: Mapping[str, Any], where: str) -> Pair | str:
    """The pair that a layer's tensors are; or why they are none."""
    names = set(parts) - {"alpha", "dora_scale", "lora_magnitude_vector"}
    alpha = _number(parts["alpha"], where) if "alpha" in parts else None
    pair: Pair | None = None
    if names and names <= {"down", "up", "mid"}:
        missing = {"down": "lora_down (lora_A)", "up": "lora_up (lora_B)"}
        absent = [words for name, words in missing.items() if name not in names]
        if absent:
            return f"without its {absent[0]}"
        pair = _low_rank(parts, weight, alpha, config, where)
    elif any(name.startswith("hada_") for name in names) or any(name.startswith("lokr_") for name in names):
        try:
            change = _hada(parts, config, alpha) if "hada_w1_a" in names else _kronecker(parts, config, alpha)
            change = change.reshape(weight.shape)
        except (KeyError, RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:120]
            raise OnbrandError(
                "lora",
                f"{where} does not fit this model's layer of {tuple(weight.shape)} ({reason}): take a LoRA for this "
                "kind of model",
            ) from error
        pair = _whole(change.float())
    if pair is None:
        return "without its weights"
    if "dora_scale" in parts or "lora_magnitude_vector" in parts:
        pair = _whole(_sized(pair, weight.float(), parts, where))
    return pair


def _low_rank(
    parts: Mapping[str, Tensor], weight: Tensor, alpha: float | None, config: Mapping[str, Any], where: str
) -> Pair:
    """A pair as the layer takes it; OnbrandError for another layer's."""
    down, up = parts["down"], parts["up"]
    if "mid" in parts:  # LoCon's: a convolution between two of 1 x 1
        mid = parts["mid"].float()
        down = torch.einsum("sr...,ri->si...", mid, down.float().flatten(1))
    rank = len(down)
    shapes = (rank, *weight.shape[1:]), (len(weight), rank, *(1,) * (weight.ndim - 2))
    if down.numel() == math.prod(shapes[0]) and up.numel() == math.prod(shapes[1]):
        if alpha is None:
            alpha = _alpha(config, rank)
        return Pair(down.reshape(shapes[0]), up.reshape(shapes[1]), alpha)
    if up.ndim < 2 or down.ndim < 2 or up.shape[1] != rank:  # noqa: PLR2004
        reason = f"its two halves {tuple(down.shape)} and {tuple(up.shape)} do not go together"
    else:
        sides = [(down.shape[1], weight.shape[1]), (up.shape[0], weight.shape[0])]
        unlike = [f"{theirs} against {ours}" for theirs, ours in sides if theirs != ours]
        unlike = unlike or [f"{tuple(down.shape)} against {tuple(weight.shape)}"]
        reason = f"made for another kind of model ({unlike[0]})"
    raise OnbrandError("lora", f"{where} does not fit this model: {reason}; take a LoRA for this kind of model")


def _hada(parts: Mapping[str, Tensor], config: Mapping[str, Any], alpha: float | None) -> Tensor:
    """LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098): the product, number by number, of two of low rank."""
    halves = []
    for number in "12":
        a, b = parts[f"hada_w{number}_a"].float(), parts[f"hada_w{number}_b"].float()
        core = parts.get(f"hada_t{number}")
        halves.append(a @ b if core is None else torch.einsum("pq...,po,qi->oi...", core.float(), a, b))
    rank = len(parts["hada_w1_b"])
    return halves[0] * halves[1] * ((_alpha(config, rank) if alpha is None else alpha) / rank)


def _kronecker(parts: Mapping[str, Tensor], config: Mapping[str, Any], alpha: float | None) -> Tensor:
    """LoKr (Yeh et al. 2024, arXiv 2309.14859): a Kronecker product, each factor whole or of low rank."""
    factors, rank = [], None
    for number in "12":
        if f"lokr_w{number}" in parts:
            factors.append(parts[f"lokr_w{number}"].float())
            continue
        a, b = parts[f"lokr_w{number}_a"].float(), parts[f"lokr_w{number}_b"].float()
        core = parts.get(f"lokr_t{number}")
        rank = len(b)
        factors.append(a @ b if core is None else torch.einsum("pq...,po,qi->oi...", core.float(), a, b))
    if config:  # peft's: by the rank that was asked for, whether a factor has it or not
        scale = _alpha(config, 1) / int(config.get("r", 1))
    else:
        scale = 1.0 if rank is None or alpha is None else alpha / rank
    one, other = factors
    product: Tensor = torch.kron(one.reshape(*one.shape, *(1,) * (other.ndim - one.ndim)), other)
    return product * scale


def _sized(pair: Pair, weight: Tensor, parts: Mapping[str, Tensor], where: str) -> Tensor:
    """DoRA (Liu et al. 2024, arXiv 2402.09353): the change W' - W, where W' has the direction of W plus the pair's
    change and the size that the file gives: of each output, or (LyCORIS) of each input."""
    changed = weight + (pair.up.float().flatten(1) @ pair.down.float().flatten(1)).reshape(weight.shape) * (
        pair.alpha / pair.rank
    )
    size = parts.get("dora_scale", parts.get("lora_magnitude_vector"))
    assert size is not None
    outputs = "lora_magnitude_vector" in parts or size.ndim < 2 or len(size) == len(weight)  # noqa: PLR2004
    if size.numel() != len(weight) if outputs else size.numel() != weight.shape[1]:
        raise OnbrandError(
            "lora",
            f"{where} does not fit this model: its dora_scale is {tuple(size.shape)}, the layer {tuple(weight.shape)}; "
            "take a LoRA for this kind of model",
        )
    axis = 0 if outputs else 1
    others = [dim for dim in range(weight.ndim) if dim != axis]
    norm = changed.norm(dim=others, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    change: Tensor = changed * (size.float().reshape(norm.shape) / norm) - weight
    return change


def _whole(change: Tensor) -> Pair:
    """A change of any rank as a pair, exactly: the identity is one half of it."""
    outputs, inputs = change.shape[:2]
    if change.ndim == 2 and inputs < outputs:  # noqa: PLR2004
        return Pair(torch.eye(inputs), change, float(inputs))
    up = torch.eye(outputs).reshape(outputs, outputs, *(1,) * (change.ndim - 2))
    return Pair(change, up, float(outputs))


def _configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What peft and diffusers write of a LoRA's alpha, by the part of the pipeline; "": of any."""
    beside = file.with_name(PEFT_CONFIG)
    if file.name == PEFT_LORA and beside.is_file():
        return {"": read_config(beside, "lora")}
    if DIFFUSERS_CONFIG not in metadata:
        return {}
    try:
        entries = dict(json.loads(metadata[DIFFUSERS_CONFIG]))
    except (ValueError, TypeError, RecursionError) as error:
        raise OnbrandError(
            "lora", f"{file.absolute()}: its metadata {DIFFUSERS_CONFIG} is no JSON object: download or copy it anew"
        ) from error
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in entries.items() if key.startswith(f"{part}.")}
        for part in PARTS
    }


def _config_of(configs: Mapping[str, dict[str, Any]], layer: Layer) -> dict[str, Any]:
    """What `_configs` says of one layer: its alpha, and the r that was asked for."""
    config = configs.get(layer[0], configs.get("", {}))
    own = dict(config)
    for name in ("alpha", "rank"):
        for pattern, value in dict(config.get(f"{name}_pattern") or {}).items():
            names = (layer[1], f"text_model.{layer[1]}")
            if any(re.match(rf"(.*\.)?({pattern})$", one) for one in names):
                own |= {"lora_alpha": value, "alpha": value} if name == "alpha" else {"r": value}
                break
    return own


def _alpha(config: Mapping[str, Any], rank: int) -> float:
    """A layer's alpha by its config; the rank without one, which is a strength of 1."""
    alpha = config.get("lora_alpha", config.get("alpha"))
    if alpha is None:
        return float(rank)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _number(value: Tensor, where: str) -> float:
    if value.numel() != 1:
        raise OnbrandError("lora", f"{where}: alpha is one number; got {tuple(value.shape)}: take another copy")
    return float(value)
