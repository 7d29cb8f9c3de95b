"""Pictures and words to what the UNet takes, and back: encode, decode, embed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import BatchEncoding


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] -> (mean, logvar) of the VAE's posterior, each (B, C, h, w), unscaled, float32.

    ValueError for another shape or range, sides the VAE cannot halve, and a VAE that overflows in half precision.
    """
    factor = factor_of(pipe)
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % factor or pictures.shape[3] % factor:
        raise ValueError(f"pictures must be (B, 3, H, W) with sides divisible by {factor}, got {tuple(pictures.shape)}")
    low, high = float(pictures.min()), float(pictures.max())
    if not -1.001 <= low <= high <= 1.001:
        raise ValueError(f"pictures must lie in [-1, 1], got {low:.3g} to {high:.3g}")
    posterior = pipe.vae.encode(pictures.to(device_of(pipe), pipe.vae.dtype)).latent_dist
    pipe.maybe_free_model_hooks()
    if not torch.isfinite(posterior.mean).all():
        raise ValueError(f"the VAE overflows in {pipe.vae.dtype}: load the model with dtype='float32'")
    return posterior.mean.float(), posterior.logvar.float()


def device_of(pipe: StableDiffusionPipeline) -> torch.device:
    """Where the pipeline computes, also while its parts wait elsewhere."""
    return pipe._execution_device


def factor_of(pipe: StableDiffusionPipeline) -> int:
    """By how much the VAE shrinks a side: 8 of Stable Diffusion."""
    return 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """The module's weights with channels last: a CPU's convolutions are two to three times as fast."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:  # what safetensors can save
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def to_x0(
    pipe: StableDiffusionPipeline, mean: Tensor, logvar: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Posterior (B, C, h, w) -> x0, scaled and shifted as the UNet takes it, float32.

    Without `logvar`: the posterior's mean (the mode: what statistics are made of). With it: a draw from `generator`
    (on its device, so that a seed draws the same everywhere).
    """
    latents = mean.float()
    if logvar is not None:
        device = latents.device if generator is None else generator.device
        noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
        latents = latents + torch.exp(0.5 * logvar.float()) * noise
    return (latents - (pipe.vae.config.shift_factor or 0.0)) * pipe.vae.config.scaling_factor


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, x0: Tensor) -> Tensor:
    """x0 (B, C, h, w) -> pictures (B, 3, H, W) in [-1, 1], float32."""
    latents = x0.to(device_of(pipe), pipe.vae.dtype) / pipe.vae.config.scaling_factor
    latents = latents + (pipe.vae.config.shift_factor or 0.0)
    pictures = pipe.vae.decode(latents).sample.float().clamp(-1, 1)
    pipe.maybe_free_model_hooks()  # where its parts wait on the CPU, they go back there
    return pictures


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> (hidden (B, L, E), what the UNet attends to; pooled (B, E)), in the text encoder's dtype and device.

    L is the tokenizer's length; a prompt over it is cut, and warned of. A LoRA of the text encoder is left out: a prior
    was fitted without it.
    """
    warn_long(pipe, prompts)
    encoder, told = pipe.text_encoder, _tokenized(pipe, prompts).to(pipe.text_encoder.device)
    uses_mask = getattr(encoder.config, "use_attention_mask", False)
    with without_lora(encoder):
        out = encoder(told.input_ids, attention_mask=told.attention_mask if uses_mask else None)
    return out.last_hidden_state, out.pooler_output


def tokens_of(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Prompts -> (B, L) int64 on the CPU, padded and cut to the tokenizer's length."""
    return _tokenized(pipe, prompts).input_ids


@contextmanager
def without_lora(network: nn.Module) -> Iterator[None]:
    """While this holds, the network is as it was before any LoRA that is beside its weights."""
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    learning = [weight.requires_grad for weight in network.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, learns in zip(network.parameters(), learning, strict=True):  # peft switches these as well
            weight.requires_grad_(learns)


def _tokenized(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> BatchEncoding:
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def warn_long(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> list[int]:
    """Indices of the prompts over the tokenizer's length; warns of them, once, with the first one's lost end."""
    length = pipe.tokenizer.model_max_length
    tokens = pipe.tokenizer(list(prompts), padding="longest", truncation=False).input_ids if prompts else []
    room = length - 2
    found, lost = [], ""
    for index, ids in enumerate(tokens):
        words = [token for token in ids if token not in pipe.tokenizer.all_special_ids]
        if len(words) > room:
            found.append(index)
            lost = lost or pipe.tokenizer.decode(words[room:])
    if found:
        warnings.warn(
            f"{len(found)} of {len(prompts)} prompts are longer than the tokenizer's {length} tokens and are cut: "
            f"prompt {found[0]} loses {lost!r}",
            stacklevel=3,
        )
    return found
