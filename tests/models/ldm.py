"""A tiny pipeline's weights as Stable Diffusion's original one-file checkpoints name them."""

from __future__ import annotations

import re

from diffusers import StableDiffusionPipeline
from torch import Tensor

RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
          ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")]  # fmt: skip
UNET = [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("conv_norm_out", "out.0"), ("conv_out", "out.2"), ("conv_in", "input_blocks.0.0")]  # fmt: skip
VAE = [("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("mid_block.attentions.0", "mid.attn_1"),
       ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("group_norm", "norm"),
       ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
       ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block")]  # fmt: skip


def to_ldm(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All weights, in one state dict, by the names of CompVis' latent diffusion."""
    layers = pipe.unet.config.layers_per_block
    has_attention = ["CrossAttn" in block_type for block_type in pipe.unet.config.up_block_types]
    blocks = len(pipe.vae.config.block_out_channels)
    unet = {unet_name(name, layers, has_attention): value for name, value in pipe.unet.state_dict().items()}
    vae = {vae_name(name, blocks): value for name, value in pipe.vae.state_dict().items()}
    vae = {n: v[..., None, None] if "attn_1" in n and v.ndim == 2 else v for n, v in vae.items()}  # 1x1 convolutions
    text = {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}
    weights = {f"model.diffusion_model.{name}": value for name, value in unet.items()}
    weights |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    weights |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
    return {name: value.contiguous().clone() for name, value in weights.items()}


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
