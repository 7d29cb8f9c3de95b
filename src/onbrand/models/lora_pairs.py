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
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import PEFT_LORA
from onbrand.models.denoiser import NAME
from onbrand.models.families import family_of
from onbrand.models.lora_names import Layer, kind_of, layer_of, layers_of, other_family, split
from onbrand.models.weights import check_numbers, few, first_line, read_config, read_safetensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PEFT_CONFIG = "adapter_config.json"
"""Beside a LoRA of peft's: its alpha, which the file itself does not say."""
DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""In the metadata of a LoRA of diffusers': the same."""
SIZES = ("lora_magnitude_vector", "dora_scale")
"""What makes a LoRA a DoRA: peft's name of it, kohya's and LyCORIS'."""
PARTS = {"unet": "the UNet", "text_encoder": "the text encoder", "text_encoder_2": "the second text encoder"}


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


def read_pairs(file: Path, pipe: DiffusionPipeline) -> Pairs:
    """The pairs of a LoRA's file for the pipeline's UNet and text encoder, in any naming of `lora_names`.

    OnbrandError if the file is damaged, holds no LoRA, numbers that are none or several LoRAs, is for another kind of
    model, or if nothing of it takes.
    """
    tensors, metadata = read_safetensors(file, "lora")
    check_numbers(tensors, str(file.absolute()), "lora")
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
    family = other_family(groups, metadata, own := family_of(pipe))
    if family:
        raise OnbrandError("lora", f"{file.absolute()} is for {family}; this model is {own.name}: take a LoRA for that")
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
    dora = any(set(SIZES) & set(groups[name]) for name in sources.values())
    return Pairs(file, pairs, len(groups), others, dora)


def put(network: Any, pairs: Mapping[str, Pair]) -> None:
    """The pairs beside the network's layers, by peft, under NAME; the layers' own weights stay as they are."""
    ranks = {f"^{re.escape(name)}": pair.rank for name, pair in pairs.items()}
    alphas = {f"^{re.escape(name)}": pair.alpha for name, pair in pairs.items()}
    config = LoraConfig(
        target_modules="|".join(re.escape(name) for name in pairs), rank_pattern=ranks, alpha_pattern=alphas
    )
    inject_adapter_in_model(config, network, NAME, low_cpu_mem_usage=True)
    for name, pair in pairs.items():  # not by a state dict, whose names peft changes with the version of transformers
        layer = network.get_submodule(name)
        for part, half in ((layer.lora_A, pair.down), (layer.lora_B, pair.up)):
            part[NAME].weight = nn.Parameter(half.to(network.device, network.dtype).contiguous(), requires_grad=False)
    network._hf_peft_config_loaded = True  # as diffusers and transformers mark it
    network.eval()


def _pair(parts: Mapping[str, Tensor], weight: Tensor, config: Mapping[str, Any], where: str) -> Pair | str:
    """The pair that a layer's tensors are; or why they are none. OnbrandError if they are for another layer."""
    names = set(parts) - {"alpha", *SIZES}
    kind = next((kind for kind in ("hada", "lokr") if any(name.startswith(kind) for name in names)), "lora")
    needed = {"lora": ("down", "up"), "hada": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "lokr": ()}[kind]
    absent = [{"down": "lora_down (lora_A)", "up": "lora_up (lora_B)"}.get(n, n) for n in needed if n not in names]
    if absent:
        return f"without {absent[0]}"
    whole = [str(parts[name].dtype) for name in sorted(names) if not parts[name].is_floating_point()]
    if whole:
        raise OnbrandError(
            "lora", f"{where} holds {whole[0]}, as if it were quantised: take a copy in float16, bfloat16 or float32"
        )
    alpha = _number(parts["alpha"], where) if "alpha" in parts else None
    try:
        if kind == "lora":
            pair = _low_rank(parts, weight, alpha, config, where)
        else:
            change = (_hada if kind == "hada" else _kronecker)(parts, config, alpha)
            pair = _whole(change.reshape(weight.shape))
        if names_of_size := [name for name in SIZES if name in parts]:
            pair = _whole(_sized(pair, weight.float(), parts[names_of_size[0]], names_of_size[0]))
    except (RuntimeError, KeyError, IndexError, ZeroDivisionError) as error:  # of shapes that do not go together
        raise OnbrandError(
            "lora",
            f"{where} does not fit this model's layer of {tuple(weight.shape)} ({first_line(error)}): take a LoRA for "
            "this kind of model",
        ) from error
    if not all(bool(torch.isfinite(half.float()).all()) for half in (pair.down, pair.up)):
        raise OnbrandError("lora", f"{where} gives numbers that are NaN or infinite: take another copy")
    return pair


def _low_rank(
    parts: Mapping[str, Tensor], weight: Tensor, alpha: float | None, config: Mapping[str, Any], where: str
) -> Pair:
    """A pair as the layer takes it; OnbrandError for another layer's."""
    down, up = parts["down"], parts["up"]
    if "mid" in parts:  # LoCon's: a convolution between two of 1 x 1
        down = torch.einsum("sr...,ri->si...", parts["mid"].float(), down.float().flatten(1))
    outputs, inputs = weight.shape[:2]
    rank = up.shape[1] if up.ndim > 1 else 0
    if not rank or down.ndim < 2 or len(down) != rank:  # noqa: PLR2004
        reason = f"its two halves {tuple(down.shape)} and {tuple(up.shape)} do not go together"
    elif down.shape[1] not in (inputs, weight[0].numel()) or len(up) != outputs:
        sides = [(down.shape[1], inputs), (len(up), outputs)]
        reason = "made for another kind of model ({} against {})".format(*next(s for s in sides if s[0] != s[1]))
    elif down[0].numel() != weight[0].numel() or up[0].numel() != rank:
        reason = f"made for another kind of model ({tuple(down.shape)} against {tuple(weight.shape)})"
    else:
        alpha = _alpha(config, rank) if alpha is None else alpha
        ones = (1,) * (weight.ndim - 2)
        return Pair(down.reshape(rank, *weight.shape[1:]), up.reshape(outputs, rank, *ones), alpha)
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
        scale = _alpha(config, 1) / (config.get("r") or 1)
    else:
        scale = 1.0 if rank is None or alpha is None else alpha / rank
    one, other = (factor.contiguous() for factor in factors)
    product: Tensor = torch.kron(one.reshape(*one.shape, *(1,) * (other.ndim - one.ndim)), other)
    return product * scale


def _sized(pair: Pair, weight: Tensor, size: Tensor, name: str) -> Tensor:
    """DoRA (Liu et al. 2024, arXiv 2402.09353): the change W' - W, where W' has the direction of W plus the pair's
    change and the size that the file gives: of each output, or (LyCORIS) of each input."""
    change = (pair.up.float().flatten(1) @ pair.down.float().flatten(1)).reshape(weight.shape)
    changed = weight + change * (pair.alpha / pair.rank)
    outputs = name == SIZES[0] or size.ndim < 2 or len(size) == len(weight)  # noqa: PLR2004
    others = [dim for dim in range(weight.ndim) if dim != (0 if outputs else 1)]
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    sized: Tensor = changed * (size.float().reshape(norm.shape) / norm)
    return sized - weight


def _whole(change: Tensor) -> Pair:
    """A change of any rank as a pair, exactly: the identity is one half of it."""
    outputs, inputs = change.shape[:2]
    if change.ndim == 2 and inputs < outputs:  # noqa: PLR2004
        return Pair(torch.eye(inputs), change, float(inputs))
    up = torch.eye(outputs).reshape(outputs, outputs, *(1,) * (change.ndim - 2))
    return Pair(change, up, float(outputs))


def _configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What peft and diffusers write of a LoRA's alpha, by the part of the pipeline; "": of any.

    OnbrandError if it cannot be read: without it the LoRA would have another strength.
    """
    beside = file.with_name(PEFT_CONFIG)
    if file.name == PEFT_LORA and beside.is_file():
        return {"": _numbers(read_config(beside, "lora"), beside)}
    if DIFFUSERS_CONFIG not in metadata:
        return {}
    try:
        entries = json.loads(metadata[DIFFUSERS_CONFIG])
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise OnbrandError(
            "lora",
            f"{file.absolute()}: its metadata {DIFFUSERS_CONFIG} must be a JSON object; got "
            f"{metadata[DIFFUSERS_CONFIG][:60]!r}: download or copy it anew",
        )
    own = {part: {key: value for key, value in entries.items() if key.startswith(f"{part}.")} for part in PARTS}
    return {
        part: _numbers({key.removeprefix(f"{part}."): value for key, value in entries.items()}, file)
        for part, entries in own.items()
    }


def _numbers(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What of peft's settings of a LoRA says how strong it is; OnbrandError if one of them is no number."""
    numbers = {name: config.get(name) for name in ("lora_alpha", "alpha", "r")}
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise OnbrandError("lora", f"{file.absolute()}: {name} must be an object; got {pattern!r}: copy it anew")
        numbers |= {f"{name} {key}": value for key, value in pattern.items()}
    for name, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and (not is_number or (value <= 0 and (name == "r" or name.startswith("rank")))):
            raise OnbrandError("lora", f"{file.absolute()}: {name} must be a number; got {value!r}: copy it anew")
    return {**numbers, "use_rslora": bool(config.get("use_rslora")), "known": bool(config)}


def _config_of(configs: Mapping[str, dict[str, Any]], layer: Layer) -> dict[str, Any]:
    """What `_configs` says of one layer: its alpha, and the r that was asked for; {} if nothing."""
    config = dict(configs.get(layer[0], configs.get("", {})))
    if not config.get("known"):
        return {}
    names = (layer[1], f"text_model.{layer[1]}")
    for kind, keys in (("alpha", ("lora_alpha", "alpha")), ("rank", ("r",))):
        for name, value in list(config.items()):
            pattern = name.removeprefix(f"{kind}_pattern ").removeprefix("^").replace("\\.", ".")
            if pattern != name and any(one == pattern or one.endswith(f".{pattern}") for one in names):
                config |= dict.fromkeys(keys, value)
                break
    return config


def _alpha(config: Mapping[str, Any], rank: int) -> float:
    """A layer's alpha by its config; the rank without one, which is a strength of 1."""
    alphas = [config[name] for name in ("lora_alpha", "alpha") if config.get(name) is not None]
    if not alphas:
        return float(rank)
    return float(alphas[0]) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _number(value: Tensor, where: str) -> float:
    if value.numel() != 1:
        raise OnbrandError("lora", f"{where}: alpha is one number; got {tuple(value.shape)}: take another copy")
    return float(value)
