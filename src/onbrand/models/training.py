"""What training takes from diffusers: the network that learns, its running mean, the learning rate's course."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_scheduler as get_scheduler
from diffusers.training_utils import EMAModel as EMAModel
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


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
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    return Denoiser(unet.requires_grad_(True))
