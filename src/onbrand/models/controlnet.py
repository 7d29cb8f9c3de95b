"""ControlNets (Zhang et al. 2023, arXiv 2302.05543): made anew from a UNet, opened, put beside a pipeline's UNet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ControlNetModel, DiffusionPipeline
from huggingface_hub import snapshot_download

from onbrand.errors import OnbrandError
from onbrand.hub import is_hub_id
from onbrand.io import read_json
from onbrand.models.checkpoint import model_folder, trained_start_in
from onbrand.models.families import family_of
from onbrand.models.weights import first_line, open_network, read_config

PART = "controlnet"
"""A ControlNet's place in a pipeline and its folder."""
WIDTHS = (16, 32, 96, 256)
"""Channels of the layers that bring a control image to the latents' size (Zhang et al. 2023: a factor of 8)."""
SHAPE = (
    "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "in_channels",
    "transformer_layers_per_block", "addition_embed_type",
)  # fmt: skip
"""What a UNet and a ControlNet beside it have alike."""
TOGETHER = "onbrand/controlnet.json"
"""In a model's folder: whether its UNet learnt with its ControlNet, which then belongs to that UNet alone."""


def new_controlnet(pipe: DiffusionPipeline, seed: int = 0) -> DiffusionPipeline:
    """The pipeline with a ControlNet that changes nothing yet: the UNet's own encoder, zero convolutions, and layers
    for the control image drawn from `seed`.

    These are drawn so that an image's contrast comes through them (He et al. 2015): by torch's own draw it fades to a
    thousandth, and a short training never reads it (docs/research/log.md).
    """
    halvings = len(pipe.vae.config.block_out_channels) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (*WIDTHS, *WIDTHS[-1:] * halvings)[: halvings + 1]
        net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)
        reader = net.controlnet_cond_embedding
        for layer in (reader.conv_in, *reader.blocks):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return beside(pipe, [net])


def beside(pipe: DiffusionPipeline, nets: Sequence[ControlNetModel]) -> DiffusionPipeline:
    """The same modules as diffusers' pipeline of a UNet and these ControlNets; one alone is not wrapped."""
    nets = [net.to(pipe.device) for net in nets]
    family = family_of(pipe)
    parts = {name: part for name, part in pipe.components.items() if name != PART}
    settings = {name: value for name, value in pipe.config.items() if isinstance(value, bool)}
    pair = family.pipelines[1](**parts | settings | dict(family.parts), controlnet=nets[0] if len(nets) == 1 else nets)
    pair.register_to_config(_name_or_path=pipe.config.get("_name_or_path"))
    pair.set_progress_bar_config(disable=True)
    return pair


def open_controlnets(pipe: DiffusionPipeline, places: Sequence[str | Path]) -> DiffusionPipeline:
    """The pipeline with the ControlNets at `places` behind those it has: each a ControlNet's folder, a run folder that
    holds one, or a Hub id "owner/name". The first that says how it was trained decides how the pipeline is started.

    OnbrandError if there is none, if one belongs to a UNet of another shape, or if its UNet learnt with it.
    """
    nets = [_open(place, pipe.unet.dtype) for place in places]
    for place, net in zip(places, nets, strict=True):
        ours, theirs = (
            json.loads(json.dumps({key: network.config[key] for key in SHAPE})) for network in (pipe.unet, net)
        )
        if ours != theirs:
            unlike = ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in SHAPE if ours[key] != theirs[key])
            raise OnbrandError(
                "controlnet",
                f"a ControlNet has the shape of the UNet it stands beside; this model and {place} differ in {unlike}: "
                "take one of the same kind of model",
            )
    pair = beside(pipe, [*nets_of(pipe), *nets])
    runs = [place for place in places if Path(place).expanduser().is_dir() and trained_start_in(place)]
    if runs:
        pair.register_to_config(_name_or_path=str(Path(runs[0]).expanduser()))
    return pair


def nets_of(pipe: DiffusionPipeline) -> list[ControlNetModel]:
    """The pipeline's ControlNets, in the order of their control images; none for a plain pipeline."""
    part = getattr(pipe, PART, None)
    return [] if part is None else list(getattr(part, "nets", [part]))


def _open(place: str | Path, dtype: torch.dtype) -> ControlNetModel:
    folder = _fetch(str(place)) if is_hub_id(place) else Path(place).expanduser()
    model = model_folder(folder)
    if read_json(model / TOGETHER).get("unet"):
        raise OnbrandError(
            "controlnet", f"the UNet in {folder.absolute()} learnt with its ControlNet: give it as the model, whole"
        )
    kinds = {}
    for inner in (folder, model / PART):
        if (inner / "config.json").is_file():
            kinds[inner] = read_config(inner / "config.json", "controlnet").get("_class_name")
            if kinds[inner] == ControlNetModel.__name__:
                return open_network(ControlNetModel, inner, dtype, "controlnet")
    seen = ", ".join(f"that of {inner.absolute()} is a {kind}" for inner, kind in kinds.items())
    what = "no such folder" if not folder.exists() else "a file" if folder.is_file() else seen or "neither is there"
    raise OnbrandError(
        "controlnet",
        f"a ControlNet is a folder whose config.json is a ControlNetModel's, a run folder with that in model/{PART}/, "
        f"or a Hub id owner/name; got {folder.absolute()}: {what}",
    )


def _fetch(name: str) -> Path:
    """The folder that a ControlNet of the Hub is kept in, fetched if it is not there yet."""
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "diffusion_pytorch_model*.safetensors*"]))
    except Exception as error:  # of whichever library asks the network
        raise OnbrandError(
            "controlnet", f"no ControlNet in safetensors at {name}, here or on the Hub: {first_line(error)}"
        ) from error
