"""A Stable Diffusion pipeline as one bundle: save, fingerprint, encode, decode, embed; `loading` opens it."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BatchEncoding

from onbrand.errors import OnbrandError, quote
from onbrand.models.checkpoint import model_folder as model_folder
from onbrand.models.checkpoint import trained_start_in as trained_start_in
from onbrand.models.checkpoint import trained_start_of as trained_start_of
from onbrand.models.checkpoint import write_record
from onbrand.models.families import encoders_of, family_of
from onbrand.models.families import factor_of as factor_of
from onbrand.models.loading import DTYPES as DTYPES
from onbrand.models.loading import SHIPPED as SHIPPED
from onbrand.models.loading import load as load
from onbrand.models.loading import name_of as name_of
from onbrand.models.loading import shipped as shipped
from onbrand.models.single_file import weights_of
from onbrand.models.tokens import losses, tokenized
from onbrand.models.weights import check_finite, quiet

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

_fingerprints: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def fingerprint(module: nn.Module) -> str:
    """sha256, in hex, of a module's weights: the sorted names, shapes and values of its state_dict.

    Floating-point values are rounded to half precision before they are hashed, so that a model and its float16 copy
    have one fingerprint and a prior fitted in float32 is known again in float16. (A bfloat16 copy has lost other
    digits: it has a fingerprint of its own.)
    """
    state = module.state_dict()
    versions = None
    if not any(value.is_inference() for value in state.values()):
        versions = [(name, value.data_ptr(), value._version, value.dtype) for name, value in state.items()]
    if module in _fingerprints and versions is not None and _fingerprints[module][0] == versions:
        return _fingerprints[module][1]
    digest = _digest(state)
    if versions is not None:
        _fingerprints[module] = (versions, digest)
    return digest


def text_fingerprint(pipe: DiffusionPipeline) -> str | None:
    """`fingerprint` of the text encoders as `embed` uses them, without a LoRA beside them; None of one in bfloat16,
    which has lost the digits it could be known by.

    Their weights go by the names that they have in every version of transformers; a second encoder's begin with its
    own.
    """
    weights: dict[str, Tensor] = {}
    for number, (part, encoder) in enumerate(encoders_of(pipe).items()):
        if encoder.dtype == torch.bfloat16:
            return None
        weights |= {
            f"{part}." * (number > 0) + name.removeprefix("text_model.").replace(".base_layer.", "."): value
            for name, value in encoder.state_dict().items()
            if ".lora_" not in name and value.is_floating_point()
        }
    return _digest(weights)


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = (value.half() if value.is_floating_point() else value).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(
    pipe: DiffusionPipeline,
    folder: str | Path,
    prior: Prior | None = None,
    trained_start: Mapping[str, Any] | None = None,
    single_file: bool = False,
) -> None:
    """Write the pipeline as `save_pretrained` does, if `single_file` as one file, model.safetensors, and beside it
    onbrand/{prior.safetensors, config.json}.

    `trained`: the start that the weights were trained with (checkpoint.KEYS; the prior's fingerprint is added).
    OnbrandError for a text encoder with a LoRA. onbrand/ is written before the weights, so that a run killed in between
    leaves no weights trained with a start that pass for plain ones.
    """
    if any(getattr(encoder, "peft_config", None) for encoder in encoders_of(pipe).values()):
        raise OnbrandError(
            "model", "a LoRA beside the text encoder is no part of a whole model: `onbrand merge` it first"
        )
    folder = Path(folder)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            check_finite(part, f"{folder} is not written: its {name}", "model")
    write_record(folder, prior, trained_start)
    if single_file:
        save_file(weights_of(pipe), folder / "model.safetensors", {"format": "pt"})
        return
    with quiet():
        pipe.save_pretrained(str(folder))


@torch.no_grad()
def encode(pipe: DiffusionPipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [-1, 1] -> (mean, logvar) of the VAE's posterior, each (B, C, h, w), unscaled, float32.

    OnbrandError for another shape or range, sides the VAE cannot halve, and a VAE that overflows in half precision.
    """
    factor = factor_of(pipe)
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
        raise OnbrandError(
            "model", f"images must be (B, 3, H, W) with sides divisible by {factor}, got {tuple(images.shape)}"
        )
    low, high = float(images.min()), float(images.max())
    if not -1.001 <= low <= high <= 1.001:
        raise OnbrandError("model", f"images must lie in [-1, 1], got {low:.3g} to {high:.3g}")
    posterior = pipe.vae.encode(images.to(device_of(pipe), pipe.vae.dtype)).latent_dist
    pipe.maybe_free_model_hooks()
    if not torch.isfinite(posterior.mean).all():
        raise OnbrandError("model", overflow("VAE", pipe.vae.dtype))
    return posterior.mean.float(), posterior.logvar.float()


def device_of(pipe: DiffusionPipeline) -> torch.device:
    """Where the pipeline computes, also while its parts wait elsewhere."""
    device: torch.device = pipe._execution_device
    return device


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """The module's weights with channels last: a CPU's convolutions are two to three times as fast."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:  # what safetensors can save
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def to_x0(
    pipe: DiffusionPipeline, mean: Tensor, logvar: Tensor | None = None, generator: torch.Generator | None = None
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
    shift, scale = float(pipe.vae.config.shift_factor or 0.0), float(pipe.vae.config.scaling_factor)
    return (latents - shift) * scale


@torch.no_grad()
def decode(pipe: DiffusionPipeline, x0: Tensor) -> Tensor:
    """x0 (B, C, h, w) -> images (B, 3, H, W) in [-1, 1], float32; NaN where the VAE overflows."""
    latents = x0.to(device_of(pipe), pipe.vae.dtype) / pipe.vae.config.scaling_factor
    latents = latents + (pipe.vae.config.shift_factor or 0.0)
    images: Tensor = pipe.vae.decode(latents).sample.float()
    images = images.clamp(-1, 1).masked_fill(~torch.isfinite(images), torch.nan)  # an infinity would pass for white
    pipe.maybe_free_model_hooks()  # where its parts wait on the CPU, they go back there
    return images


@torch.no_grad()
def embed(pipe: DiffusionPipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> (hidden (B, L, E), what the UNet attends to; pooled (B, P)), in the text encoders' dtype and device.

    L is the tokenizer's length; a prompt over it is cut (`warn_long`, once for all texts of a run, says so). A LoRA of
    the text encoders is left out: a prior was fitted without it.
    """
    encoders = list(encoders_of(pipe).values())
    texts = [_tokenized(pipe, name, prompts).to(encoders[0].device) for name in family_of(pipe).tokenizers]
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(without_lora(encoder))
        return family_of(pipe).read(
            encoders, [text.input_ids for text in texts], [text.attention_mask for text in texts]
        )


def tokens_of(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Prompts -> (B, N, L) int64 on the CPU, for N text encoders, padded and cut to the tokenizers' length."""
    return torch.stack([_tokenized(pipe, name, prompts).input_ids for name in family_of(pipe).tokenizers], 1)


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


def _tokenized(pipe: DiffusionPipeline, name: str, prompts: Sequence[str]) -> BatchEncoding:
    tokenizer = getattr(pipe, name)
    return tokenized(tokenizer, prompts, tokenizer.model_max_length)


def warn_long(pipe: DiffusionPipeline, texts: Sequence[str]) -> list[int]:
    """Indices of the texts over the tokenizer's length, which are cut; one warning shows the first and its lost end.

    Prompts, negative prompts and captions alike: called once for all that a run embeds.
    """
    length = pipe.tokenizer.model_max_length
    lost = losses(pipe.tokenizer, texts, length)
    if lost:
        first, words = next(iter(lost.items()))
        warnings.warn(
            f"{len(lost)} of {len(texts)} texts are longer than the tokenizer's {length} tokens and are cut: "
            f"{quote(texts[first], 60)} loses {quote(words, 60)}",
            stacklevel=3,
        )
    return list(lost)


def overflow(network: str, dtype: torch.dtype) -> str:
    """What to say, and do, when numbers that a network gives are not finite."""
    remedy = "load the model with dtype float32"
    if dtype == torch.float32:
        remedy = "its weights may be damaged, take another model"
    return f"the {network} overflows in {str(dtype).removeprefix('torch.')}, its numbers are not finite: {remedy}"
