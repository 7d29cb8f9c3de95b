"""Which weights learn: all of the UNet's, a LoRA beside them, or a ControlNet; nothing else in training differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from onbrand.errors import OnbrandError
from onbrand.models.controlnet import nets_of
from onbrand.models.families import encoders_of, factor_of, family_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NAME = "onbrand"
"""The LoRA's name in a pipeline under training."""
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""A text encoder's layers that a LoRA has: its attention."""


class Denoiser(nn.Module):
    """The network as the loop sees it; of its weights those learn that require a gradient."""

    def __init__(self, pipe: DiffusionPipeline, controlnet: nn.Module | None = None, text: bool = False) -> None:
        """controlnet: one that stands beside the UNet; text: the text encoders learn too."""
        super().__init__()
        self.family, self.factor = family_of(pipe), factor_of(pipe)
        self.unet, self.controlnet = pipe.unet, controlnet
        self.encoders = list(self.family.encoders) if text else []
        """Names of the text encoders that learn, which are its modules."""
        for name in self.encoders:
            setattr(self, name, getattr(pipe, name))

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        hidden: Tensor,
        pooled: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """x_t (B, C, H, W), timesteps (B,), captions' hidden states (B, L, E), or their tokens (B, N, L) if the N text
        encoders learn, pooled text (B, P) if the UNet reads it, and for a ControlNet control images (B, 3, H', W') in
        [0, 1], of the images' size -> the network's output (B, C, H, W)."""
        if self.encoders:
            hidden, pooled = self.family.read([getattr(self, name) for name in self.encoders], hidden.unbind(1))
        beside = self.family.beside(pooled, x_t, self.factor)
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            control = self.controlnet(x_t, timesteps, encoder_hidden_states=hidden, controlnet_cond=condition, **beside)
            residuals["down_block_additional_residuals"] = control.down_block_res_samples
            residuals["mid_block_additional_residual"] = control.mid_block_res_sample
        output: Tensor = self.unet(x_t, timesteps, encoder_hidden_states=hidden, **beside, **residuals).sample
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


def full(pipe: DiffusionPipeline) -> Denoiser:
    """Full fine-tuning: the whole UNet learns, in place; the VAE and the text encoder are frozen.

    Raises OnbrandError for a UNet that does not take (latents, timestep, text) alone.
    """
    freeze(pipe)
    pipe.unet.requires_grad_(True)
    return Denoiser(pipe)


def lora(
    pipe: DiffusionPipeline,
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
                for encoder in encoders_of(pipe).values():
                    encoder.add_adapter(LoraConfig(target_modules=list(WORDS), **config), NAME)
    for network in (pipe.unet, *encoders_of(pipe).values()):
        for name, weight in network.named_parameters():
            weight.requires_grad_(f".{NAME}." in name)
    return Denoiser(pipe, text=text_encoder)


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
    pipe: DiffusionPipeline, targets: Sequence[str], text_encoder: bool
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that `lora` would adapt, by name; none in a pipeline that has its LoRA already.

    Raises OnbrandError for a target that no layer is called by.
    """
    if NAME not in getattr(pipe.unet, "peft_config", {}):
        _check_targets(pipe.unet, targets)
    encoders = encoders_of(pipe) if text_encoder else {}
    networks = {"": (pipe.unet, tuple(targets))} | {f"{part}.": (one, WORDS) for part, one in encoders.items()}
    return {
        f"{part}{name}": layer
        for part, (network, ends) in networks.items()
        if NAME not in getattr(network, "peft_config", {})
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{end}" for end in ends))
    }


def controlnet(pipe: DiffusionPipeline, unet: bool = False) -> Denoiser:
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
    return Denoiser(pipe, nets[0].requires_grad_(True))


def freeze(pipe: DiffusionPipeline) -> None:
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
    for module in (*networks, pipe.vae, *encoders_of(pipe).values()):
        module.requires_grad_(False)
