"""Which weights learn: all of the UNet's, a LoRA beside them, or a ControlNet; nothing else in training differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

NAME = "onbrand"
"""The LoRA's name in a pipeline under training."""
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The text encoder's layers that a LoRA has: its attention."""


class Denoiser(nn.Module):
    """The network as the loop sees it; of its weights those learn that require a gradient."""

    def __init__(
        self, unet: nn.Module, controlnet: nn.Module | None = None, text_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.unet, self.controlnet, self.text_encoder = unet, controlnet, text_encoder

    def forward(self, x_t: Tensor, timesteps: Tensor, hidden: Tensor, condition: Tensor | None = None) -> Tensor:
        """x_t (B, C, H, W), timesteps (B,), captions' hidden states (B, L, E), or their tokens (B, L) where the text
        encoder learns, and for a ControlNet control images (B, 3, H', W') in [0, 1], of the images' size -> the
        network's output (B, C, H, W)."""
        if self.text_encoder is not None:
            hidden = self.text_encoder(hidden).last_hidden_state
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            control = self.controlnet(x_t, timesteps, encoder_hidden_states=hidden, controlnet_cond=condition)
            residuals["down_block_additional_residuals"] = control.down_block_res_samples
            residuals["mid_block_additional_residual"] = control.mid_block_res_sample
        output: Tensor = self.unet(x_t, timesteps, encoder_hidden_states=hidden, **residuals).sample
        return output

    def enable_gradient_checkpointing(self) -> None:
        """The UNet's and the ControlNet's activations are computed again instead of kept."""
        for network in (self.unet, self.controlnet):
            if network is not None:
                network.enable_gradient_checkpointing()  # type: ignore[operator]

    def lower(self, dtype: torch.dtype, whole: bool = False) -> None:
        """Keeps the UNet's layers that do not learn in `dtype`, to which autocast would round them anew in every step:
        the same numbers in half the memory.

        What autocast does not round (norms) stays, and the first layer, whose dtype is the UNet's to diffusers: that of
        its latents. `whole`: these too, for a UNet that is to run without autocast.
        """
        layers = [layer for layer in self.unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        others = [weight for layer in layers[1:] for weight in layer.parameters()]
        for weight in self.unet.parameters() if whole else others:
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """The weights that learn, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


def full(pipe: StableDiffusionPipeline) -> Denoiser:
    """Full fine-tuning: the whole UNet learns, in place; the VAE and the text encoder are frozen.

    Raises OnbrandError for a UNet that does not take (latents, timestep, text) alone.
    """
    freeze(pipe)
    return Denoiser(pipe.unet.requires_grad_(True))


def lora(
    pipe: StableDiffusionPipeline,
    rank: int,
    alpha: int | None,
    targets: Sequence[str],
    seed: int = 0,
    text_encoder: bool = False,
) -> Denoiser:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank B A learns, of the UNet's layers whose names end in one
    of `targets`, and with `text_encoder` of that one's attention; W and all else are frozen. B begins at zero, A is
    drawn from `seed`; alpha None: the rank.

    The networks are given the LoRA in place; called again on the same pipeline, it is found again as it is. Raises
    OnbrandError as `full` does, and where no layer is so named.
    """
    from peft import LoraConfig

    freeze(pipe)
    if NAME not in getattr(pipe.unet, "peft_config", {}):
        _check_targets(pipe.unet, targets)
        config: dict[str, Any] = {
            "r": rank,
            "lora_alpha": rank if alpha is None else alpha,
            "init_lora_weights": "gaussian",
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe.unet.add_adapter(LoraConfig(target_modules=list(targets), **config), NAME)
            if text_encoder:
                pipe.text_encoder.add_adapter(LoraConfig(target_modules=list(WORDS), **config), NAME)
    for network in (pipe.unet, pipe.text_encoder):
        for name, weight in network.named_parameters():
            weight.requires_grad_(f".{NAME}." in name)
    return Denoiser(pipe.unet, text_encoder=pipe.text_encoder if text_encoder else None)


def _check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    """Raises OnbrandError for a target that no layer is called by."""
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            raise OnbrandError(
                "model",
                f"target_modules are ends of the names of the UNet's linear and convolution layers; none ends in "
                f"{target!r}: take to_q, to_k, to_v, to_out.0, or see [name for name, _ in unet.named_modules()]",
            )


def adapted_layers(
    pipe: StableDiffusionPipeline, targets: Sequence[str], text_encoder: bool
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that `lora` would adapt, by name; none in a pipeline that has its LoRA already.

    Raises OnbrandError for a target that no layer is called by.
    """
    if NAME not in getattr(pipe.unet, "peft_config", {}):
        _check_targets(pipe.unet, targets)
    networks = [(pipe.unet, tuple(targets)), *([(pipe.text_encoder, WORDS)] if text_encoder else [])]
    return {
        name: layer
        for network, ends in networks
        if NAME not in getattr(network, "peft_config", {})
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{end}" for end in ends))
    }


def controlnet(pipe: StableDiffusionControlNetPipeline, unet: bool = False) -> Denoiser:
    """A ControlNet (Zhang et al. 2023) learns, with `unet` the UNet too.

    Raises OnbrandError as `full` does, and for a pipeline that does not have one ControlNet: `new_controlnet` gives it.
    """
    freeze(pipe)
    nets = nets_of(pipe)
    if len(nets) != 1:
        raise OnbrandError(
            "model", f"method controlnet trains one ControlNet; this pipeline has {len(nets)}: take new_controlnet"
        )
    pipe.unet.requires_grad_(unet)
    return Denoiser(pipe.unet, nets[0].requires_grad_(True))


def freeze(pipe: StableDiffusionPipeline | StableDiffusionControlNetPipeline) -> None:
    """All of the pipeline frozen and ready for training; OnbrandError if its UNet cannot be trained."""
    unet = pipe.unet
    if unet.config.in_channels != pipe.vae.config.latent_channels:
        raise OnbrandError(
            "model",
            f"the UNet must take the VAE's latents alone ({pipe.vae.config.latent_channels} channels); it takes "
            f"{unet.config.in_channels}: inpainting and other conditioned UNets are not trained here",
        )
    networks = [unet, *nets_of(pipe)]
    if pipe.device.type == "cpu":  # the backward of fused attention takes a fifth of a step there
        for network in networks:
            network.set_attn_processor(AttnProcessor())
    if pipe.device.type == "cuda":  # as its fast convolutions have them
        for network in networks:
            network.to(memory_format=torch.channels_last)
    for module in (*networks, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
