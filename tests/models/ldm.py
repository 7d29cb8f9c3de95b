"""A tiny pipeline's weights as the original one-file checkpoints of Stable Diffusion 1, 2 and XL name them."""

from __future__ import annotations

import re

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
          ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")]  # fmt: skip
UNET = [("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("conv_norm_out", "out.0"), ("conv_out", "out.2"), ("conv_in", "input_blocks.0.0")]  # fmt: skip
VAE = [("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("mid_block.attentions.0", "mid.attn_1"),
       ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("group_norm", "norm"),
       ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
       ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block")]  # fmt: skip


def to_ldm(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights, in one state dict, by the names of CompVis' latent diffusion."""
    layers = pipe.unet.config.layers_per_block
    has_attention = ["CrossAttn" in block_type for block_type in pipe.unet.config.up_block_types]
    blocks = len(pipe.vae.config.block_out_channels)
    unet = {unet_name(name, layers, has_attention): value for name, value in pipe.unet.state_dict().items()}
    vae = {vae_name(name, blocks): value for name, value in pipe.vae.state_dict().items()}
    vae = {n: v[..., None, None] if "attn_1" in n and v.ndim == 2 else v for n, v in vae.items()}  # 1x1 convolutions
    weights = {f"model.diffusion_model.{name}": value for name, value in unet.items()}
    weights |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    first = "conditioner.embedders.0." if hasattr(pipe, "text_encoder_2") else "cond_stage_model."
    text = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    weights |= {f"{first}transformer.text_model.{name}": value for name, value in text.items()}
    if hasattr(pipe, "text_encoder_2"):
        encoder = open_clip(pipe.text_encoder_2.state_dict())
        weights |= {f"conditioner.embedders.1.model.{name}": value for name, value in encoder.items()}
    return {name: value.contiguous().clone() for name, value in weights.items()}


OPEN_CLIP = [("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
             ("embeddings.position_embedding.weight", "positional_embedding"),
             ("embeddings.token_embedding", "token_embedding")]  # fmt: skip


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights as OpenCLIP names them: q, k and v in one matrix, the projection transposed."""
    out: dict[str, Tensor] = {"text_projection": state["text_projection.weight"].T}
    for name, value in state.items():
        name = name.removeprefix("text_model.")
        if match := re.match(r"(.*self_attn)\.q_proj\.(weight|bias)", name):
            layer, kind = match.groups()
            parts = [state[f"{prefix(state)}{layer}.{one}_proj.{kind}"] for one in "qkv"]
            layer = layer.replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
            out[f"{layer}.in_proj_{kind}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj|text_projection|position_ids", name):
            name = name.replace("final_layer_norm", "ln_final")
            for old, new in OPEN_CLIP:
                name = name.replace(old, new)
            out[name] = value
    return out


def prefix(state: dict[str, Tensor]) -> str:
    """What stands before the names of a text encoder's layers: it depends on the version of transformers."""
    return "text_model." if any(name.startswith("text_model.") for name in state) else ""


def unet_name(name: str, layers: int, has_attention: list[bool]) -> str:
    for old, new in RESNET if "resnets" in name else UNET if "blocks" not in name and "mid_block" not in name else []:
        name = name.replace(old, new)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        module, place, rest = match.groups()
        return f"middle_block.{2 * int(place) if module == 'resnets' else 1}.{rest}"
    if match := re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        way, block, module, layer, rest = match.groups()
        if module == "downsamplers":
            return f"input_blocks.{1 + int(block) * (layers + 1) + layers}.0.op.{rest.removeprefix('conv.')}"
        if module == "upsamplers":
            return f"output_blocks.{int(block) * (layers + 1) + layers}.{2 if has_attention[int(block)] else 1}.{rest}"
        first, side = (1, "input") if way == "down" else (0, "output")
        return f"{side}_blocks.{first + int(block) * (layers + 1) + int(layer)}.{int(module == 'attentions')}.{rest}"
    return name


def vae_name(name: str, blocks: int) -> str:
    for old, new in VAE:
        name = name.replace(old, new)
    name = name.replace("down_blocks", "down")
    return re.sub(r"up_blocks\.(\d)", lambda match: f"up.{blocks - 1 - int(match[1])}", name)
