"""A LoRA's files: diffusers' and kohya's, with the start it was trained for in their metadata; merged, taken out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.io import whole_file
from onbrand.models.checkpoint import LORA, SCHEMA, write_record
from onbrand.models.denoiser import NAME
from onbrand.models.families import encoders_of, family_of
from onbrand.models.lora_pairs import put, read_pairs
from onbrand.models.weights import check_finite, check_numbers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

KOHYA = "lora_kohya.safetensors"
"""The same LoRA under the names of kohya's sd-scripts, as A1111, ComfyUI and others read it."""


def save(
    pipe: DiffusionPipeline,
    folder: str | Path,
    prior: Prior | None = None,
    trained_start: Mapping[str, Any] | None = None,
    base: str = "",
) -> None:
    """Write the pipeline's LoRA as `load_lora_weights` takes it and as kohya names it, and the prior beside them.

    `base`: the model it was trained on; `trained`: the start it was trained with (checkpoint.KEYS). Both stand in the
    files' metadata, under "onbrand", with the prior's fingerprint; kohya's file has the usual ss_ keys too.
    """
    folder = Path(folder)
    unet, unet_config = _layers(pipe.unet)
    words = {part: _layers(encoder) for part, encoder in encoders_of(pipe).items()}
    for weights in (unet, *(weights for weights, _ in words.values())):
        check_numbers(weights, f"{folder} is not written", "lora")
    record = write_record(folder, prior, trained_start)
    # as older transformers name them, and kohya; newer ones know both
    texts = {
        part: {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}
        for part, (weights, _) in words.items()
    }
    metadata = {"onbrand": json.dumps({"schema": SCHEMA, "base": base, "trained_start": record or None})}
    type(pipe).save_lora_weights(
        folder, unet, unet_lora_adapter_metadata=unet_config,
        **{f"{part}_lora_layers": weights or None for part, weights in texts.items()},
        **{f"{part}_lora_adapter_metadata": settings or None for part, (_, settings) in words.items()},
    )  # fmt: skip
    with safe_open(folder / LORA, "pt") as file:
        own = dict(file.metadata())
    _write(folder / LORA, load_file(folder / LORA), own | metadata)
    config = pipe.unet.peft_config[NAME]
    layers = {f"{part}.{name}": weight for part, one in {"unet": unet, **texts}.items() for name, weight in one.items()}
    beginnings, base_model = family_of(pipe).kohya(pipe.unet.config, str(pipe.scheduler.config["prediction_type"]))
    kohya = {}
    for name, weight in convert_state_dict_to_kohya(layers).items():
        for theirs, own_name in beginnings.items():
            name = name.replace(theirs, own_name)
        kohya[name] = torch.tensor(float(config.lora_alpha)) if name.endswith(".alpha") else weight.contiguous()
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.lora_alpha),
        "ss_sd_model_name": base,
        **base_model,
    }
    _write(folder / KOHYA, kohya, header | metadata)


def rename(file: Path, target: Path, base: str, prior: str | None) -> None:
    """Write a LoRA's file to `target` with another name of its base model, and its prior's fingerprint under that."""
    with safe_open(file, "pt") as one:
        metadata = dict(one.metadata())
    own = json.loads(metadata["onbrand"]) | {"base": base}
    if start := own.get("trained_start") or own.get("offset"):  # offset: its name in schema 1
        start |= {"prior": prior}
    others = {"ss_sd_model_name": base} if "ss_sd_model_name" in metadata else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, load_file(file), metadata | others | {"onbrand": json.dumps(own)})


def fuse(pipe: DiffusionPipeline, file: Path, scale: float = 1.0) -> None:
    """Adds `scale` times the LoRA in `file` to the UNet's own weights, in place, and says how much of the file took.

    A scale of -1 takes out again what 1 has put in, to the rounding of float32. What the file has for the text encoder
    stays beside its weights, for a start is told of the prompt by the text encoder as it was (`pipeline.embed`).
    OnbrandError as `lora_pairs.read_pairs`; a warning if a part of the file did not take.
    """
    pairs = read_pairs(file, pipe)
    if pairs.dora and scale < 0:
        raise OnbrandError(
            "lora",
            f"{file} is a DoRA, which sets the size of weights and cannot be taken out again; got lora_scale {scale}: "
            "keep the model from before",
        )
    print(pairs)
    if pairs.rest:
        warnings.warn(f"not all of {file} took: {pairs.rest}", stacklevel=2)
    if scale == 0 or not any(pair.has_effect for pair in pairs.layers.values()):
        zero = "lora_scale is 0" if scale == 0 else "its weights or its alpha are 0"
        warnings.warn(f"{file} changes nothing: {zero}", stacklevel=2)
    layers = pairs.of("unet")
    if layers:
        put(pipe.unet, layers)
        pipe.fuse_lora(components=["unet"], lora_scale=scale)
        pipe.unet.unload_lora()
        remedy = "take another copy" if abs(scale) <= 1 else f"take a lora_scale nearer to 1 than {scale:g}"
        check_finite(pipe.unet, f"with {file} the UNet", "lora", remedy)
    for part, encoder in encoders_of(pipe).items():
        if words := pairs.of(part):
            put(encoder, words)
            set_weights_and_activate_adapters(encoder, [NAME], [scale])
            encoder.requires_grad_(False)


def fuse_words(pipe: DiffusionPipeline, trained_start: Mapping[str, Any] | None) -> None:
    """Adds what `fuse` has left beside the text encoder's weights to them, in place; nothing if nothing is.

    OnbrandError for a start by the text: another text encoder than the prior was fitted with would then read it.
    """
    parts = [part for part, encoder in encoders_of(pipe).items() if NAME in getattr(encoder, "peft_config", {})]
    if not parts:
        return
    if trained_start and trained_start["start"] == "text":
        raise OnbrandError(
            "lora",
            "this LoRA changes the text encoder and starts from what the prior reads in its output: merged, the start "
            "would be read wrong; use it as a LoRA, or train with start mean or without train_text_encoder",
        )
    pipe.fuse_lora(components=parts)
    pipe.unload_lora_weights()


def _layers(network: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A network's LoRA by its layers' names, and how it was made; both empty where there is none."""
    if NAME not in getattr(network, "peft_config", {}):
        return {}, {}
    state, config = get_peft_model_state_dict(network, adapter_name=NAME), network.peft_config[NAME]
    metadata = config.to_dict() | {"target_modules": sorted(config.target_modules)}
    return {name: weight.detach().cpu().contiguous() for name, weight in state.items()}, metadata


def _write(file: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose bytes follow from its content: the library writes metadata in an order of chance."""
    content = serialize(dict(weights), metadata=dict(metadata))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    prefix = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    with whole_file(file) as draft:
        draft.write_bytes(len(prefix).to_bytes(8, "little") + prefix + content[8 + size :])
