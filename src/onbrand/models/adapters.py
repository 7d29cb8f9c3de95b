"""Which weights learn: all of the UNet's, or a LoRA beside them; nothing else in training differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

NAME = "onbrand"
"""The LoRA's name in a pipeline under training."""


class Denoiser(nn.Module):
    """The network as the loop sees it; of its weights those learn that require a gradient."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        """x_t (B, C, H, W), timesteps (B,), captions' hidden states (B, L, E) -> the network's output (B, C, H, W)."""
        return self.unet(x_t, timesteps, encoder_hidden_states=hidden).sample

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """The weights that learn, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


def full(pipe: StableDiffusionPipeline) -> Denoiser:
    """Full fine-tuning: the whole UNet learns, in place; the VAE and the text encoder are frozen.

    Raises ValueError for a UNet that does not take (latents, timestep, text) alone, and for one not in float32.
    """
    freeze(pipe)
    return Denoiser(pipe.unet.requires_grad_(True))


def lora(
    pipe: StableDiffusionPipeline, rank: int, alpha: int | None, targets: Sequence[str], seed: int = 0
) -> Denoiser:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank B A learns, of the UNet's layers whose names end in one
    of `targets`; W and all else are frozen. B begins at zero, A is drawn from `seed`; alpha None: the rank.

    The UNet is given the LoRA in place; called again on the same pipeline, it is found again as it is. Raises
    ValueError as `full` does, and where no layer is so named.
    """
    from peft import LoraConfig

    freeze(pipe)
    if NAME not in getattr(pipe.unet, "peft_config", {}):
        layers = [name for name, layer in pipe.unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for target in targets:
            if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
                raise ValueError(
                    f"lora.targets are ends of the names of the UNet's linear and convolution layers; none ends in "
                    f"{target!r}: take to_q, to_k, to_v, to_out.0, or see [name for name, _ in unet.named_modules()]"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe.unet.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=rank if alpha is None else alpha,
                    target_modules=list(targets),
                    init_lora_weights="gaussian",
                ),
                NAME,
            )
    for name, weight in pipe.unet.named_parameters():
        weight.requires_grad_(f".{NAME}." in name)
    return Denoiser(pipe.unet)


def freeze(pipe: StableDiffusionPipeline) -> None:
    """All of the pipeline frozen and ready for training; ValueError where its UNet cannot be trained."""
    unet = pipe.unet
    if unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"the UNet must take the VAE's latents alone ({pipe.vae.config.latent_channels} channels); it takes "
            f"{unet.config.in_channels}: inpainting and other conditioned UNets are not trained here"
        )
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in unet.parameters()})
    if kinds != ["float32"]:
        raise ValueError(
            f"weights that learn must be kept in float32; these are {', '.join(kinds)}: load the model with dtype "
            "float32 and set engine.precision for faster arithmetic"
        )
    if pipe.device.type == "cpu":  # the backward of fused attention takes a fifth of a step there
        unet.set_attn_processor(AttnProcessor())
    for module in (unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
