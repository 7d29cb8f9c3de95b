"""A Stable Diffusion pipeline from a folder, a file, a shipped model or the Hub: looked at part by part, then opened.

Nothing is asked of the network unless a Hub id was given, and no code of a model is run.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.models.checkpoint import base_of, is_lora, lora_metadata, model_folder
from onbrand.models.controlnet import PART, nets_of, open_controlnets
from onbrand.models.lora import fuse
from onbrand.models.parts import check_length, check_parts, check_unet
from onbrand.models.weights import (
    check_file,
    check_finite,
    few,
    first_line,
    is_hub_id,
    open_network,
    quiet,
    read_config,
    read_safetensors_shapes,
    reading,
)

SHIPPED = ("tiny",)
"""Models that come with the package, by name, in `onbrand/assets/`."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PIPELINES = (StableDiffusionPipeline, StableDiffusionControlNetPipeline)
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
"""The parts whose class is given; text encoder, tokenizer and scheduler are of the class that the model names."""
FILES = (".safetensors", ".ckpt")
"""Of a whole model in one file, by the ends of their names."""
OURS = ("v1", "v2")
"""diffusers' names of one-file checkpoints that are Stable Diffusion 1 or 2."""


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
    .ckpt file with its `config` (a folder in diffusers' layout, with weights or without), the name of a shipped model
    (SHIPPED), or a Hub id "owner/name". Only a Hub id uses the network; no code of the model is run. A folder that
    holds a LoRA alone is loaded with the model it was trained on; `lora`, a LoRA's file or folder, is added to `model`
    times `lora_scale`. `controlnet`: ControlNets to put beside its UNet (`controlnet.open_controlnets`).
    `offload`: each part waits on the CPU until it is called (diffusers' `enable_model_cpu_offload`), and the VAE takes
    one image at a time, large ones in tiles.
    OnbrandError that says what was looked for, if there is no such model, if it is of another kind, or if a part of it
    is missing, damaged or does not go with the others.
    """
    if dtype not in DTYPES:
        raise OnbrandError("model", f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    path = shipped(str(model)) if str(model) in SHIPPED else Path(model).expanduser()
    if lora is None and is_lora(path):
        return load(base_of(path), device, dtype, config, path, lora_scale, controlnet, offload)
    if not math.isfinite(lora_scale):
        raise OnbrandError("model", f"lora_scale is a number, 1 for a LoRA as it was trained; got {lora_scale}")
    if lora is None and lora_scale != 1:
        raise OnbrandError(
            "model", f"lora_scale is how strongly a LoRA counts; got {lora_scale} and none: give lora, or leave it out"
        )
    file, metadata = (None, {}) if lora is None else lora_metadata(lora)  # before the model, which takes longer
    pipe = _open(model, path, config, DTYPES[dtype])
    pipe.set_progress_bar_config(disable=True)
    if file is not None:
        with quiet():
            fuse(pipe, file, lora_scale)
    if controlnet:
        with quiet():
            pipe = open_controlnets(pipe, controlnet)
    if metadata.get("trained_start"):
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


def _open(
    model: str | Path, path: Path, config: str | Path | None, dtype: torch.dtype
) -> StableDiffusionPipeline | StableDiffusionControlNetPipeline:
    """The pipeline at `path`, on the CPU, or the one that the Hub has for `model`."""
    if config is not None and not path.is_file():
        raise OnbrandError(
            "model", f"model_config is for a model in one file; got it beside {model}: leave model_config out"
        )
    if path.is_file():
        return _open_file(path, config, dtype)
    if path.is_dir():
        return _open_folder(path, dtype)
    if is_hub_id(model):
        pipe = _open_folder(_fetch(str(model), path), dtype)
        pipe.register_to_config(_name_or_path=str(model))
        return pipe
    forms = "a folder with model_index.json, a .safetensors or .ckpt file, a Hub id owner/name, a shipped model"
    place = model if "://" in str(model) else path.absolute()  # of an address a path makes something else
    raise OnbrandError("model", f"no model at {place}: give {forms} ({', '.join(SHIPPED)})")


def _fetch(name: str, path: Path) -> Path:
    """The folder that a model of the Hub is kept in, fetched if it is not there yet; its kind is asked first."""
    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    try:
        index = Path(hf_hub_download(name, "model_index.json"))
        _check_class(read_config(index, "model"), f"{name} on the Hub")
        return Path(StableDiffusionPipeline.download(name, **unused))
    except OnbrandError:
        raise
    except Exception as error:  # of whichever library asks the network
        raise OnbrandError(
            "model", f"no folder {path.absolute()}, and no model {name!r} on the Hub: {first_line(error)}"
        ) from error


def _check_class(index: Mapping[str, Any], where: str) -> Any:
    """The pipeline's class that a model_index.json names; OnbrandError, with its name, for another kind of model."""
    classes = {one.__name__: one for one in PIPELINES}
    name = str(index.get("_class_name"))  # a list, for code of a model's own
    if name not in classes:
        kind = " (Stable Diffusion XL)" if "XL" in name else ""
        raise OnbrandError(
            "model",
            f"a {' or '.join(classes)} is needed; the model in {where} is a {name}{kind}: take a Stable Diffusion 1 or "
            "2 that makes images of text",
        )
    return classes[name]


def _open_folder(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline | StableDiffusionControlNetPipeline:
    """The pipeline of a folder in diffusers' layout, part by part: what it does not use it need not have."""
    path = model_folder(path)
    if not (path / "model_index.json").is_file():
        raise OnbrandError("model", f"no model in {path.absolute()}: looked for model_index.json there and in model/")
    index = read_config(path / "model_index.json", "model")
    pipeline = _check_class(index, str(path.absolute()))
    parts = {
        name: _part(path, index, name, dtype) for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    }
    if pipeline is StableDiffusionControlNetPipeline:
        folders = [folder for folder in sorted(path.glob(f"{PART}*")) if (folder / "config.json").is_file()]
        nets = [open_network(diffusers.ControlNetModel, folder, dtype, "controlnet") for folder in folders]
        if not nets:
            raise OnbrandError("model", f"{path.absolute()} has no {PART}/config.json, which its index names")
        parts[PART] = nets[0] if len(nets) == 1 else nets
    return _assembled(pipeline, parts, path)


def _part(path: Path, index: Mapping[str, Any], name: str, dtype: torch.dtype) -> Any:
    """One part of a model's folder, of the class that its model_index.json names."""
    entry = index.get(name)
    library, kind = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)  # noqa: PLR2004
    module = {"diffusers": diffusers, "transformers": transformers}.get(str(library))
    part_class: Any = getattr(module, str(kind), None) if module is not None else None
    wanted = NETWORKS.get(name)
    if not hasattr(part_class, "from_pretrained") or (wanted is not None and part_class is not wanted):
        needed = f"{wanted.__name__} of diffusers" if wanted is not None else "a class of diffusers or transformers"
        raise OnbrandError(
            "model",
            f"{path.absolute() / 'model_index.json'}: the {name} must be {needed}; got {entry}: take another model, or "
            "write there what its folder holds",
        )
    folder = path / name
    if not folder.is_dir():
        raise OnbrandError("model", f"{path.absolute()} has no folder {name}, which its model_index.json names")
    for file in sorted(folder.glob("*.json")):
        read_config(file, "model")
    if name == "unet":
        check_unet(read_config(folder / "config.json", "model"), path)
    if name in ("unet", "vae", "text_encoder"):
        return open_network(part_class, folder, dtype, "model")
    if name == "scheduler":
        check_length(read_config(folder / "scheduler_config.json", "model"), path)
    with reading(str(folder.absolute()), "model"):
        return part_class.from_pretrained(str(folder), local_files_only=True)


def _assembled(pipeline: Any, parts: Mapping[str, Any], path: Path) -> Any:
    """The pipeline of these parts, which go together."""
    check_parts(parts, path)
    others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with reading(str(path.absolute()), "model"):
        pipe = pipeline(**parts, **others)
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _open_file(path: Path, config: str | Path | None, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The pipeline of a checkpoint in one file, by the configuration in `config`, or the one in the Hub's cache."""
    if path.suffix not in FILES:
        raise OnbrandError("model", f"a model file ends in .safetensors or .ckpt; got {path.absolute()}")
    shapes = _shapes(path)
    _check_kind(path, shapes)
    folder = _config_in(path, config, shapes)
    index = read_config(folder / "model_index.json", "model")
    _check_class(index, str(folder.absolute()))
    for name in ("vae", "text_encoder"):
        read_config(folder / name / "config.json", "model")
    check_unet(read_config(folder / "unet" / "config.json", "model"), folder)
    parts = {name: _part(folder, index, name, dtype) for name in ("tokenizer", "scheduler")}
    with reading(f"{path.absolute()}, by the configuration in {folder.absolute()},", "model"):
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, safety_checker=None,
            feature_extractor=None, image_encoder=None, **parts,
        )  # fmt: skip
    for name in ("unet", "vae", "text_encoder"):
        parts[name] = getattr(pipe, name)
        check_finite(parts[name], f"{path.absolute()}, its {name}", "model")
    return _assembled(StableDiffusionPipeline, parts, path)


def _shapes(path: Path) -> dict[str, Tensor]:
    """The names and shapes of a checkpoint's tensors, which take no memory; OnbrandError if it cannot be read."""
    check_file(path, "model")
    if path.suffix == ".safetensors":
        return read_safetensors_shapes(path, "model")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles written in another way than torch's
            content = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OnbrandError(
            "model",
            f"{path.absolute()} is damaged, or holds objects beside its weights, which could run code and are not "
            "opened: take a copy in safetensors",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OnbrandError(
            "model", f"{path.absolute()} is damaged or cut short ({first_line(error)}): download or copy it anew"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _check_kind(path: Path, shapes: Mapping[str, Tensor]) -> None:
    """OnbrandError, with what it is, for a checkpoint that is no whole Stable Diffusion 1 or 2."""
    parts = {"UNet": "model.diffusion_model.", "VAE": "first_stage_model.", "text encoder": "cond_stage_model."}
    kind = infer_diffusers_model_type(shapes)
    if kind not in OURS:
        known = {"xl_base": "Stable Diffusion XL", "xl_refiner": "Stable Diffusion XL's refiner"}
        raise OnbrandError(
            "model",
            f"{path.absolute()} is a checkpoint of another kind ({known.get(kind, kind)}): take a Stable Diffusion 1 "
            "or 2 that makes images of text",
        )
    missing = [words for words, start in parts.items() if not any(name.startswith(start) for name in shapes)]
    if missing:
        names = few(sorted(shapes)) or "nothing"
        raise OnbrandError(
            "model",
            f"{path.absolute()} is no whole model: it has no {', no '.join(missing)} (it holds {names}); take a whole "
            "checkpoint, or a folder in diffusers' layout",
        )


def _config_in(path: Path, config: str | Path | None, shapes: Mapping[str, Tensor]) -> Path:
    """The folder with a one-file checkpoint's configuration: `config`, or what the Hub's cache has for its kind."""
    if config is not None:
        folder = shipped(str(config)) if str(config) in SHIPPED else model_folder(config)
        if not (folder / "model_index.json").is_file():
            raise OnbrandError(
                "model",
                f"model_config is a folder in diffusers' layout, with model_index.json; got {folder.absolute()}: give "
                "one of the same kind of model, with weights or without",
            )
        return folder
    try:
        repository = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
        return Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise OnbrandError(
            "model",
            f"{path.absolute()} holds weights alone and its configuration is not on this machine: give model_config, a "
            "folder of the same kind of model in diffusers' layout, with weights or without",
        ) from error
