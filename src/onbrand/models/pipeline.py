"""A Stable Diffusion pipeline as one bundle: load, save, fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.utils import logging as transformers_logging

from onbrand.errors import OnbrandError, quote
from onbrand.models.checkpoint import base_of, half_alone, is_lora, lora_metadata, write_record
from onbrand.models.checkpoint import model_folder as model_folder
from onbrand.models.checkpoint import trained_start_in as trained_start_in
from onbrand.models.checkpoint import trained_start_of as trained_start_of
from onbrand.models.controlnet import nets_of, open_controlnets
from onbrand.models.lora import fuse

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

SHIPPED = ("tiny",)
"""Models that come with the package, by name, in `onbrand/assets/`."""
LONGEST = 32
"""Characters that a token stands for at most, on average: what lies behind so many a token is cut in any case."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_fingerprints: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def load(
    model: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    config: str | Path | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    controlnet: Sequence[str | Path] = (),
    offload: bool = False,
) -> StableDiffusionPipeline | StableDiffusionControlNetPipeline:
    """The pipeline at `model`, on `device`, in `dtype` ("float32" | "float16" | "bfloat16"), safety checker off.

    `model`: a folder in diffusers' layout (or a run folder that holds one in `model/`), a single .safetensors or
    .ckpt file (with `config`, a folder in diffusers' layout, nothing is asked of the Hub), the name of a shipped
    model (SHIPPED), or a Hub id "owner/name". Only a Hub id uses the network; no code of the model is run. A folder
    that holds a LoRA alone is loaded with the model it was trained on; `lora`, a LoRA's file or folder, is added to
    `model` times `lora_scale`. `controlnet`: ControlNets to put beside its UNet (`controlnet.open_controlnets`).
    `offload`: each part waits on the CPU until it is called (diffusers' `enable_model_cpu_offload`), and the VAE takes
    one image at a time, large ones in tiles.
    OnbrandError that says what was looked for, if there is no such model or it is of another kind.
    """
    if dtype not in DTYPES:
        raise OnbrandError("model", f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "safety_checker": None, "requires_safety_checker": False}
    path = shipped(str(model)) if str(model) in SHIPPED else Path(model).expanduser()
    if lora is None and is_lora(path):
        return load(base_of(path), device, dtype, config, path, lora_scale, controlnet, offload)
    if lora is None and lora_scale != 1:
        raise OnbrandError(
            "model", f"lora_scale is how strongly a LoRA counts; got {lora_scale} and none: give lora, or leave it out"
        )
    if path.is_file():
        pipe = _load_file(path, config, options)
    elif path.is_dir():
        pipe = _load_folder(path, options)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) and not str(model).startswith("."):
        try:
            pipe = StableDiffusionPipeline.from_pretrained(str(model), **options)
        except OSError as error:
            line = str(error).strip().split("\n")[0]
            raise OnbrandError(
                "model", f"no folder {path.absolute()}, and no model {model!r} on the Hub: {line}"
            ) from error
    else:
        forms = "a folder with model_index.json, a .safetensors or .ckpt file, a Hub id owner/name, a shipped model"
        raise OnbrandError("model", f"no model at {path.absolute()}: give {forms} ({', '.join(SHIPPED)})")
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        file, metadata = lora_metadata(lora)
        with _quiet():
            fuse(pipe, file, lora_scale)
    if controlnet:
        with _quiet():
            pipe = open_controlnets(pipe, controlnet)
    if lora is not None and metadata.get("trained_start"):
        pipe.register_to_config(_name_or_path=str(file))
    if offload:
        pipe.enable_model_cpu_offload(device=device)
        pipe.vae.enable_slicing()
        pipe.vae.enable_tiling()
    else:
        pipe.to(device)
    if torch.device(device).type == "cuda":  # as its fast convolutions have them
        for network in (pipe.unet, pipe.vae, *nets_of(pipe)):
            network.to(memory_format=torch.channels_last)
    return pipe


def name_of(pipe: StableDiffusionPipeline) -> str:
    """What `load` takes to load the pipeline again: a shipped model's name, an absolute path, a Hub id; "" where it
    was not loaded."""
    origin = str(pipe.config.get("_name_or_path") or "")
    names = [name for name in SHIPPED if origin and Path(origin) == shipped(name)]
    return names[0] if names else str(Path(origin).absolute()) if origin and Path(origin).exists() else origin


def shipped(name: str) -> Path:
    """The folder of the model called `name` (one of SHIPPED) inside the package; OnbrandError if it is not there."""
    path = Path(str(resources.files("onbrand") / "assets" / name))
    if not (path / "model_index.json").is_file():
        raise OnbrandError(
            "model", f"the shipped model {name!r} is missing: no {path / 'model_index.json'}; install onbrand anew"
        )
    return path


def _load_folder(path: Path, options: Mapping[str, Any]) -> StableDiffusionPipeline | StableDiffusionControlNetPipeline:
    path = model_folder(path)
    index = path / "model_index.json"
    if not index.is_file():
        raise OnbrandError("model", f"no model in {path.absolute()}: looked for {index.name} there and in model/")
    name = json.loads(index.read_text()).get("_class_name")
    classes = {one.__name__: one for one in (StableDiffusionPipeline, StableDiffusionControlNetPipeline)}
    if name not in classes:
        raise OnbrandError("model", f"a {' or '.join(classes)} is needed; the model in {path.absolute()} is a {name}")
    with _quiet():
        return classes[name].from_pretrained(
            str(path), local_files_only=True, variant="fp16" if half_alone(path / "unet") else None, **options
        )


def _load_file(path: Path, config: str | Path | None, options: Mapping[str, Any]) -> StableDiffusionPipeline:
    if path.suffix not in (".safetensors", ".ckpt"):
        raise OnbrandError("model", f"a model file ends in .safetensors or .ckpt; got {path.absolute()}")
    try:
        with _quiet():
            return StableDiffusionPipeline.from_single_file(
                str(path), config=None if config is None else str(config), local_files_only=True, **options
            )
    except OSError as error:
        raise OnbrandError(
            "model",
            f"{path.absolute()} holds weights alone and its configuration is not on this machine: "
            "give config=FOLDER, any folder of the same kind of model in diffusers' layout",
        ) from error


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
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = (value.half() if value.is_floating_point() else value).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    if versions is not None:
        _fingerprints[module] = (versions, digest.hexdigest())
    return digest.hexdigest()


def save(
    pipe: StableDiffusionPipeline,
    folder: str | Path,
    prior: Prior | None = None,
    trained_start: Mapping[str, Any] | None = None,
) -> None:
    """Write the pipeline as `save_pretrained` does, and beside it onbrand/{prior.safetensors, config.json}.

    `trained`: the start that the weights were trained with (checkpoint.KEYS; the prior's fingerprint is added).
    OnbrandError for a text encoder with a LoRA. onbrand/ is written before the weights, so that a run killed in between
    leaves no weights trained with a start that pass for plain ones.
    """
    if getattr(pipe.text_encoder, "peft_config", None):
        raise OnbrandError(
            "model", "a LoRA beside the text encoder is no part of a whole model: `onbrand merge` it first"
        )
    folder = Path(folder)
    write_record(folder, prior, trained_start)
    with _quiet():
        pipe.save_pretrained(str(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """While this holds, reading and writing local files draws no progress bars."""
    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, images: Tensor) -> tuple[Tensor, Tensor]:
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


def device_of(pipe: StableDiffusionPipeline) -> torch.device:
    """Where the pipeline computes, also while its parts wait elsewhere."""
    device: torch.device = pipe._execution_device
    return device


def factor_of(pipe: StableDiffusionPipeline) -> int:
    """By how much the VAE shrinks a side: 8 of Stable Diffusion."""
    return int(2 ** (len(pipe.vae.config.block_out_channels) - 1))


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
    shift, scale = float(pipe.vae.config.shift_factor or 0.0), float(pipe.vae.config.scaling_factor)
    return (latents - shift) * scale


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, x0: Tensor) -> Tensor:
    """x0 (B, C, h, w) -> images (B, 3, H, W) in [-1, 1], float32; NaN where the VAE overflows."""
    latents = x0.to(device_of(pipe), pipe.vae.dtype) / pipe.vae.config.scaling_factor
    latents = latents + (pipe.vae.config.shift_factor or 0.0)
    images: Tensor = pipe.vae.decode(latents).sample.float()
    images = images.clamp(-1, 1).masked_fill(~torch.isfinite(images), torch.nan)  # an infinity would pass for white
    pipe.maybe_free_model_hooks()  # where its parts wait on the CPU, they go back there
    return images


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> (hidden (B, L, E), what the UNet attends to; pooled (B, E)), in the text encoder's dtype and device.

    L is the tokenizer's length; a prompt over it is cut (`warn_long`, once for all texts of a run, says so). A LoRA of
    the text encoder is left out: a prior was fitted without it.
    """
    encoder, tokens = pipe.text_encoder, _tokenized(pipe, prompts).to(pipe.text_encoder.device)
    uses_mask = getattr(encoder.config, "use_attention_mask", False)
    with without_lora(encoder):
        out = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if uses_mask else None)
    return out.last_hidden_state, out.pooler_output


def tokens_of(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Prompts -> (B, L) int64 on the CPU, padded and cut to the tokenizer's length."""
    tokens: Tensor = _tokenized(pipe, prompts).input_ids
    return tokens


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


def warn_long(pipe: StableDiffusionPipeline, texts: Sequence[str]) -> list[int]:
    """Indices of the texts over the tokenizer's length, which are cut; one warning shows the first and its lost end.

    Prompts, negative prompts and captions alike: called once for all that a run embeds.
    """
    length = pipe.tokenizer.model_max_length
    special, room = set(pipe.tokenizer.all_special_ids), length - 2
    cut, lost = [], ""
    words = [" ".join(text.split()) for text in texts]
    starts = [text[: LONGEST * length] for text in words]  # of a book its beginning is read
    tokens = pipe.tokenizer(starts, truncation=False, verbose=False).input_ids if starts else []
    for index, ids in enumerate(tokens):
        ids = [token for token in ids if token not in special]
        if len(ids) > room or len(starts[index]) < len(words[index]):
            cut.append(index)
            lost = lost or f"{quote(words[index], 60)} loses {quote(pipe.tokenizer.decode(ids[room:]), 60)}"
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(texts)} texts are longer than the tokenizer's {length} tokens and are cut: {lost}",
            stacklevel=3,
        )
    return cut


def overflow(network: str, dtype: torch.dtype) -> str:
    """What to say, and do, when numbers that a network gives are not finite."""
    remedy = "load the model with dtype float32"
    if dtype == torch.float32:
        remedy = "its weights may be damaged, take another model"
    return f"the {network} overflows in {str(dtype).removeprefix('torch.')}, its numbers are not finite: {remedy}"
