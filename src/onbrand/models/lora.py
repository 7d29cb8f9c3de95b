"""A LoRA's files: diffusers' and kohya's, with the start it was trained for in their metadata; merged, taken out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from onbrand.models.adapters import NAME
from onbrand.models.record import LORA, write_record

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

KOHYA = "lora_kohya.safetensors"
"""The same LoRA under the names of kohya's sd-scripts, as A1111, ComfyUI and others read it."""


def save(
    pipe: StableDiffusionPipeline,
    folder: str | Path,
    prior: Prior | None = None,
    offset: Mapping[str, Any] | None = None,
    base: str = "",
) -> None:
    """Write the pipeline's LoRA as `load_lora_weights` takes it and as kohya names it, and the prior beside them.

    `base`: the model it was trained on; `offset`: how it was trained (record.KEYS). Both stand in the files' metadata,
    under "onbrand", with the prior's fingerprint; kohya's file has the usual ss_ keys too.
    """
    from peft.utils import get_peft_model_state_dict

    folder = Path(folder)
    record = write_record(folder, prior, offset)
    config = pipe.unet.peft_config[NAME]
    weights = {name: weight.detach().cpu().contiguous() for name, weight in
               get_peft_model_state_dict(pipe.unet, adapter_name=NAME).items()}  # fmt: skip
    told = {"onbrand": json.dumps({"base": base, "offset": record or None})}
    plain = config.to_dict() | {"target_modules": sorted(config.target_modules)}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights, unet_lora_adapter_metadata=plain)
    with safe_open(folder / LORA, "pt") as file:
        kept = dict(file.metadata())
    _write(folder / LORA, load_file(folder / LORA), kept | told)
    kohya = convert_state_dict_to_kohya({f"unet.{name}": weight for name, weight in weights.items()})
    kohya = {name: torch.tensor(float(config.lora_alpha)) if name.endswith(".alpha") else weight.contiguous()
             for name, weight in kohya.items()}  # fmt: skip
    named = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(config.lora_alpha),
        "ss_sd_model_name": base,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
    }
    _write(folder / KOHYA, kohya, named | told)


def fuse(pipe: StableDiffusionPipeline, file: Path, scale: float = 1.0) -> None:
    """Adds `scale` times the LoRA in `file` to the UNet's own weights, in place.

    A scale of -1 takes out again what 1 has put in, to the rounding of float32.
    """
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=NAME, local_files_only=True)
    pipe.fuse_lora(components=["unet"], lora_scale=scale)
    pipe.unload_lora_weights()


def _write(file: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose bytes follow from its content: the library writes metadata in an order of chance."""
    content = serialize(dict(weights), metadata=dict(metadata))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    file.write_bytes(len(ordered).to_bytes(8, "little") + ordered + content[8 + size :])
