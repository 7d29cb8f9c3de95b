"""A pipeline's weights in one file, by the names of the original checkpoints, as ComfyUI, Forge and A1111 read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onbrand.models.families import family_of
from onbrand.models.lora_names import ldm_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

VAE = (
    ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("group_norm", "norm"),
    ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"), ("resnets", "block"), ("down_blocks", "down"),
)  # fmt: skip
"""Parts of diffusers' names of an autoencoder's layers -> those of the original checkpoints, in this order."""
OPEN_CLIP = (
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding", "token_embedding"), ("final_layer_norm", "ln_final"),
    ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
)  # fmt: skip
"""Parts of transformers' names of a text encoder's layers -> OpenCLIP's, in this order."""


def weights_of(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline by their original names, and the empty tensors v_pred and ztsnr if they are so."""
    weights = {f"model.diffusion_model.{name}": value for name, value in _unet(pipe.unet).items()}
    weights |= {f"first_stage_model.{name}": value for name, value in _vae(pipe.vae).items()}
    for part, (beginning, is_open_clip) in family_of(pipe).text_in_one_file(pipe).items():
        state = _text(getattr(pipe, part).state_dict(), is_open_clip)
        weights |= {f"{beginning}{name}": value for name, value in state.items()}
    marks = {
        "v_pred": pipe.scheduler.config.get("prediction_type") == "v_prediction",
        "ztsnr": bool(pipe.scheduler.config.get("rescale_betas_zero_snr")),
    }
    weights |= {name: torch.empty(0) for name, holds in marks.items() if holds}
    return {name: value.detach().contiguous().clone() for name, value in weights.items()}


def _unet(unet: Any) -> dict[str, Tensor]:
    state = {}
    for name, value in unet.state_dict().items():
        layer, _, end = name.rpartition(".")
        state[f"{ldm_name(layer, unet)}.{end}"] = value
    return state


def _vae(vae: Any) -> dict[str, Tensor]:
    state, blocks = {}, len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        for theirs, original in VAE:
            name = name.replace(theirs, original)
        name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{blocks - 1 - int(match[1])}", name)
        is_convolution = "attn_1" in name and value.ndim == 2  # noqa: PLR2004  (of 1 x 1 in the original)
        state[name] = value[..., None, None] if is_convolution else value
    return state


def _text(state: Mapping[str, Tensor], is_open_clip: bool) -> dict[str, Tensor]:
    """A text encoder's weights by transformers' names without their beginning, or by OpenCLIP's, which has q, k and v
    in one matrix and its projection transposed."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    if not is_open_clip:
        return state
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"(.*self_attn)\.([qkv])_proj\.(weight|bias)", name):
            layer, part, end = match.groups()
            if part != "q":
                continue
            value = torch.cat([state[f"{layer}.{one}_proj.{end}"] for one in "qkv"])
            name = f"{layer}.in_proj_{end}"
        elif name == "text_projection.weight":
            name, value = "text_projection", value.T
        elif name.endswith("position_ids"):
            continue
        for theirs, original in OPEN_CLIP:
            name = name.replace(theirs, original)
        out[name] = value
    return out
