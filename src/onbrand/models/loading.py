"""A pipeline from a folder, a file, a shipped model or the Hub: looked at part by part, then opened.

Nothing is asked of the network unless a Hub id was given, and no code of a model is run.
"""

from __future__ import annotations

import inspect
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
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.hub import fetch, is_hub_id
from onbrand.models.checkpoint import BESIDE, base_of, is_lora, lora_metadata, model_folder
from onbrand.models.controlnet import PART, nets_of, open_controlnets
from onbrand.models.families import FAMILIES, Family, known
from onbrand.models.lora import fuse
from onbrand.models.parts import check_length, check_parts, check_unet, warn_of_students
from onbrand.models.scheduler import marked
from onbrand.models.weights import (
    check_file,
    check_finite,
    few,
    first_line,
    open_network,
    quiet,
    read_config,
    read_safetensors_shapes,
    reading,
)

SHIPPED = ("tiny", "tiny-xl")
"""Models that come with the package, by name, in `onbrand/assets/`."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
"""The parts whose class is given; text encoders, tokenizers and scheduler are of the class that the model names."""
FILES = (".safetensors", ".ckpt")
"""Of a whole model in one file, by the ends of their names."""


def load(
    model: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    config: str | Path | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    controlnet: Sequence[str | Path] = (),
    offload: bool = False,
) -> DiffusionPipeline:
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
    if is_hub_id(model):
        fetch(str(model), BESIDE, "model")
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
    warn_of_students([model, *([] if lora is None else [lora])], pipe.scheduler, pipe.unet.config)
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


def name_of(pipe: DiffusionPipeline) -> str:
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


def _open(model: str | Path, path: Path, config: str | Path | None, dtype: torch.dtype) -> DiffusionPipeline:
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
        _class_of(read_config(index, "model"), f"{name} on the Hub")
        return Path(DiffusionPipeline.download(name, **unused))
    except OnbrandError:
        raise
    except Exception as error:  # of whichever library asks the network
        raise OnbrandError(
            "model", f"no folder {path.absolute()}, and no model {name!r} on the Hub: {first_line(error)}"
        ) from error


def _class_of(index: Mapping[str, Any], where: str) -> tuple[Family, Any]:
    """The family and the pipeline's class that a model_index.json names; OnbrandError, with its name, for another."""
    for family in FAMILIES:
        for pipeline in family.pipelines:
            if index.get("_class_name") == pipeline.__name__:
                return family, pipeline
    reason = f"is a {index.get('_class_name')}"
    if "Flow" in str(index.get("scheduler")):  # [library, class]
        reason += (
            ", a flow model: it starts from pure noise in training as in inference, and has no leak that a start could "
            "mend (OB005); its images may be checked"
        )
    raise OnbrandError("model", f"{known()}; that in {where} {reason}: take one of these")


def _open_folder(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a folder in diffusers' layout, part by part: what it does not use it need not have."""
    path = model_folder(path)
    if not (path / "model_index.json").is_file():
        raise OnbrandError("model", f"no model in {path.absolute()}: looked for model_index.json there and in model/")
    index = read_config(path / "model_index.json", "model")
    family, pipeline = _class_of(index, str(path.absolute()))
    names = ("unet", "vae", *family.encoders, *family.tokenizers, "scheduler")
    parts = {name: _part(family, path, index, name, dtype) for name in names}
    if pipeline is family.pipelines[1]:
        folders = [folder for folder in sorted(path.glob(f"{PART}*")) if (folder / "config.json").is_file()]
        nets = [open_network(diffusers.ControlNetModel, folder, dtype, "controlnet") for folder in folders]
        if not nets:
            raise OnbrandError("model", f"{path.absolute()} has no {PART}/config.json, which its index names")
        parts[PART] = nets[0] if len(nets) == 1 else nets
    return _assembled(family, pipeline, parts, index, path)


def _part(family: Family, path: Path, index: Mapping[str, Any], name: str, dtype: torch.dtype) -> Any:
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
        check_unet(read_config(folder / "config.json", "model"), family, path)
    if name == "vae" and family.upcasts(read_config(folder / "config.json", "model")):
        dtype = torch.float32
    if name in ("unet", "vae", *family.encoders):
        return open_network(part_class, folder, dtype, "model")
    if name == "scheduler":
        check_length(read_config(folder / "scheduler_config.json", "model"), path)
    with reading(str(folder.absolute()), "model"):
        return part_class.from_pretrained(str(folder), local_files_only=True)


def _assembled(
    family: Family, pipeline: Any, parts: Mapping[str, Any], index: Mapping[str, Any], path: Path
) -> DiffusionPipeline:
    """The pipeline of these parts, which go together; what its index sets beside them stays set."""
    check_parts(family, parts, path)
    taken = inspect.signature(pipeline.__init__).parameters
    settings = {name: value for name, value in index.items() if name in taken and isinstance(value, bool)}
    with reading(str(path.absolute()), "model"):
        pipe = pipeline(**parts, **settings | dict(family.parts))
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _open_file(path: Path, config: str | Path | None, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a checkpoint in one file, by the configuration in `config`, or the one in the Hub's cache."""
    if path.suffix not in FILES:
        raise OnbrandError("model", f"a model file ends in .safetensors or .ckpt; got {path.absolute()}")
    shapes = _shapes(path)
    family = _family_of(path, shapes)
    folder = _config_in(path, config, shapes)
    index = read_config(folder / "model_index.json", "model")
    if _class_of(index, str(folder.absolute()))[0] is not family:
        raise OnbrandError(
            "model",
            f"{path.absolute()} is {family.name}, its configuration {folder.absolute()} is of a "
            f"{index['_class_name']}: give the model_config of one of its kind",
        )
    networks = ("unet", "vae", *family.encoders)
    for name in networks:
        read_config(folder / name / "config.json", "model")
    check_unet(read_config(folder / "unet" / "config.json", "model"), family, folder)
    pipeline, unused = family.pipelines[0], {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    parts = {name: _part(family, folder, index, name, dtype) for name in (*family.tokenizers, "scheduler")}
    parts["scheduler"] = marked(parts["scheduler"], shapes)
    taken = inspect.signature(pipeline.__init__).parameters
    with reading(f"{path.absolute()}, by the configuration in {folder.absolute()},", "model"):
        pipe = pipeline.from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=dtype,
            **{name: part for name, part in unused.items() if name in taken}, **parts,
        )  # fmt: skip
    for name in networks:
        parts[name] = getattr(pipe, name)
        check_finite(parts[name], f"{path.absolute()}, its {name}", "model")
    if family.upcasts(parts["vae"].config):
        parts["vae"] = parts["vae"].float()
    return _assembled(family, pipeline, parts, index, path)


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


def _family_of(path: Path, shapes: Mapping[str, Tensor]) -> Family:
    """The family of a checkpoint; OnbrandError, with what it is, if it is of none or no whole model."""
    kind = infer_diffusers_model_type(shapes)
    family = next((family for family in FAMILIES if kind in family.files), None)
    if family is None:
        name = {"xl_refiner": "Stable Diffusion XL's refiner"}.get(kind, kind)
        raise OnbrandError(
            "model", f"{known()}; {path.absolute()} is a checkpoint of another kind ({name}): take one of these"
        )
    parts = {"UNet": "model.diffusion_model.", "VAE": "first_stage_model.", "text encoder": family.files[kind]}
    missing = [words for words, start in parts.items() if not any(name.startswith(start) for name in shapes)]
    if missing:
        names = few(sorted(shapes)) or "nothing"
        raise OnbrandError(
            "model",
            f"{path.absolute()} is no whole model: it has no {', no '.join(missing)} (it holds {names}); take a whole "
            "checkpoint, or a folder in diffusers' layout",
        )
    return family


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
