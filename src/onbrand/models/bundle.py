"""A Stable Diffusion pipeline as one bundle: load, save, fingerprint, encode, decode, embed."""

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
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from onbrand.models.record import checked, model_folder
from onbrand.models.record import offset_config as offset_config
from onbrand.models.record import offset_of as offset_of

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

SHIPPED = ("tiny", "pilot")
"""Models that come with the package, by name, in `onbrand/assets/`."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def load(
    model: str | Path, device: str = "cpu", dtype: str = "float32", config: str | Path | None = None
) -> StableDiffusionPipeline:
    """The pipeline at `model`, on `device`, in `dtype` ("float32" | "float16" | "bfloat16"), safety checker off.

    `model`: a folder in diffusers' layout (or a run folder that holds one in `model/`), a single .safetensors or
    .ckpt file (with `config`, a folder in diffusers' layout, nothing is asked of the Hub), the name of a shipped
    model ("pilot", "tiny"), or a Hub id "owner/name". Only a Hub id uses the network; no code of the model is run.
    ValueError that says what was looked for, if there is no such model or it is of another kind.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "safety_checker": None, "requires_safety_checker": False}
    path = shipped(str(model)) if str(model) in SHIPPED else Path(model).expanduser()
    if path.is_file():
        pipe = _load_file(path, config, options)
    elif path.is_dir():
        pipe = _load_folder(path, options)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) and not str(model).startswith("."):
        try:
            pipe = StableDiffusionPipeline.from_pretrained(str(model), **options)
        except OSError as error:
            line = str(error).strip().split("\n")[0]
            raise ValueError(f"no folder {path.absolute()}, and no model {model!r} on the Hub: {line}") from error
    else:
        kinds = "a folder with model_index.json, a .safetensors or .ckpt file, a Hub id owner/name, a shipped model"
        raise ValueError(f"no model at {path.absolute()}: give {kinds} ({', '.join(SHIPPED)})")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def shipped(name: str) -> Path:
    """The folder of the model called `name` (one of SHIPPED) inside the package; ValueError if it is not there."""
    path = Path(str(resources.files("onbrand") / "assets" / name))
    if not (path / "model_index.json").is_file():
        raise ValueError(f"the shipped model {name!r} is missing: no {path / 'model_index.json'}; install onbrand anew")
    return path


def _load_folder(path: Path, options: Mapping[str, Any]) -> StableDiffusionPipeline:
    path = model_folder(path)
    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(f"no model in {path.absolute()}: looked for {index.name} there and in model/")
    kind = json.loads(index.read_text()).get("_class_name")
    if kind != StableDiffusionPipeline.__name__:
        raise ValueError(f"a StableDiffusionPipeline is needed; the model in {path.absolute()} is a {kind}")
    unet = path / "unet"
    half = not (unet / "diffusion_pytorch_model.safetensors").exists() and any(unet.glob("*.fp16.safetensors"))
    with _quiet():
        return StableDiffusionPipeline.from_pretrained(
            str(path), local_files_only=True, variant="fp16" if half else None, **options
        )


def _load_file(path: Path, config: str | Path | None, options: Mapping[str, Any]) -> StableDiffusionPipeline:
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"a model file ends in .safetensors or .ckpt; got {path.absolute()}")
    try:
        with _quiet():
            return StableDiffusionPipeline.from_single_file(
                str(path), config=None if config is None else str(config), local_files_only=True, **options
            )
    except OSError as error:
        raise ValueError(
            f"{path.absolute()} holds weights alone and its configuration is not on this machine: "
            "give config=FOLDER, any folder of the same kind of model in diffusers' layout"
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
    if module in _known and versions is not None and _known[module][0] == versions:
        return _known[module][1]
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = (value.half() if value.is_floating_point() else value).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    if versions is not None:
        _known[module] = (versions, digest.hexdigest())
    return digest.hexdigest()


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] -> (mean, logvar) of the VAE's posterior, each (B, C, h, w), unscaled, float32.

    ValueError for another shape or range, sides the VAE cannot halve, and a VAE that overflows in half precision.
    """
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % factor or pictures.shape[3] % factor:
        raise ValueError(f"pictures must be (B, 3, H, W) with sides divisible by {factor}, got {tuple(pictures.shape)}")
    low, high = float(pictures.min()), float(pictures.max())
    if not -1.001 <= low <= high <= 1.001:
        raise ValueError(f"pictures must lie in [-1, 1], got {low:.3g} to {high:.3g}")
    posterior = pipe.vae.encode(pictures.to(pipe.vae.device, pipe.vae.dtype)).latent_dist
    if not torch.isfinite(posterior.mean).all():
        raise ValueError(f"the VAE overflows in {pipe.vae.dtype}: load the model with dtype='float32'")
    return posterior.mean.float(), posterior.logvar.float()


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
    latents = x0.to(pipe.vae.device, pipe.vae.dtype) / pipe.vae.config.scaling_factor
    latents = latents + (pipe.vae.config.shift_factor or 0.0)
    return pipe.vae.decode(latents).sample.float().clamp(-1, 1)


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> (hidden (B, L, E), what the UNet attends to; pooled (B, E)), in the text encoder's dtype and device.

    L is the tokenizer's length; a prompt over it is cut, and warned of.
    """
    warn_long(pipe, prompts)
    tokens = pipe.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    device = pipe.text_encoder.device
    uses_mask = getattr(pipe.text_encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if uses_mask else None
    out = pipe.text_encoder(tokens.input_ids.to(device), attention_mask=mask)
    return out.last_hidden_state, out.pooler_output


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


def save(
    pipe: StableDiffusionPipeline,
    folder: str | Path,
    prior: Prior | None = None,
    offset: Mapping[str, Any] | None = None,
) -> None:
    """Write the pipeline as `save_pretrained` does, and beside it onbrand/{prior.safetensors, config.json}.

    `offset`: for offset-trained weights, how they were trained (record.KEYS; the prior's fingerprint is added).
    onbrand/ is written before the weights, so that a run killed in between leaves no offset-trained weights that pass
    for plain ones.
    """
    folder = Path(folder)
    beside = folder / "onbrand"
    record = {} if offset is None else checked(offset, "offset")
    if prior is not None:
        record = {**record, "prior": prior.fingerprint} if record else record
        beside.mkdir(parents=True, exist_ok=True)
        prior.save(beside / "prior.safetensors")
    if record:
        beside.mkdir(parents=True, exist_ok=True)
        (beside / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    else:
        (beside / "config.json").unlink(missing_ok=True)
    with _quiet():
        pipe.save_pretrained(str(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """While this holds, reading and writing local files draws no progress bars."""
    drawn = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in drawn:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawn:
            library.enable_progress_bar()
