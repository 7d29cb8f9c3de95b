"""ControlNets (Zhang et al. 2023, arXiv 2302.05543): made anew from a UNet, opened, put beside a pipeline's UNet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from onbrand.models.record import model_folder, offset_config

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PART = "controlnet"
"""A ControlNet's place in a pipeline and its folder."""
WIDTHS = (16, 32, 96, 256)
"""Channels of the layers that bring a control picture to the latents' size (Zhang et al. 2023: a factor of 8)."""


def new_controlnet(pipe: StableDiffusionPipeline, seed: int = 0) -> StableDiffusionControlNetPipeline:
    """The pipeline with a ControlNet that changes nothing yet: the UNet's own encoder, zero convolutions, and layers
    for the control picture drawn from `seed`.

    These are drawn so that a picture's contrast comes through them (He et al. 2015): by torch's own draw it fades to a
    thousandth, and a short training never reads it (docs/adapters.md).
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


def beside(pipe: StableDiffusionPipeline, nets: Sequence[ControlNetModel]) -> StableDiffusionControlNetPipeline:
    """The same modules as diffusers' pipeline of a UNet and these ControlNets; one alone is not wrapped."""
    nets = [net.to(pipe.device) for net in nets]
    parts = {name: part for name, part in pipe.components.items() if name != PART}
    made = StableDiffusionControlNetPipeline(
        **parts, controlnet=nets[0] if len(nets) == 1 else nets, requires_safety_checker=False
    )
    made.register_to_config(_name_or_path=pipe.config.get("_name_or_path"))
    made.set_progress_bar_config(disable=True)
    return made


def open_controlnets(pipe: StableDiffusionPipeline, places: Sequence[str | Path]) -> StableDiffusionControlNetPipeline:
    """The pipeline with the ControlNets at `places`: each a ControlNet's folder, a run folder that holds one, or a Hub
    id "owner/name". The first that says how it was trained decides how the pipeline is started.

    ValueError where there is none, and where one belongs to a UNet of other widths.
    """
    made = beside(pipe, [_open(place, pipe.unet.dtype) for place in places])
    for net in nets_of(made):
        ours, theirs = pipe.unet.config, net.config
        if any(ours[key] != theirs[key] for key in ("block_out_channels", "cross_attention_dim", "in_channels")):
            raise ValueError(
                f"a ControlNet has the widths of the UNet it stands beside: {tuple(ours['block_out_channels'])}, text "
                f"{ours['cross_attention_dim']}; got {tuple(theirs['block_out_channels'])}, text "
                f"{theirs['cross_attention_dim']}: take one of the same kind of model"
            )
    told = [place for place in places if Path(place).expanduser().is_dir() and offset_config(place)]
    if told:
        made.register_to_config(_name_or_path=str(Path(told[0]).expanduser()))
    return made


def nets_of(pipe: StableDiffusionPipeline | StableDiffusionControlNetPipeline) -> list[ControlNetModel]:
    """The pipeline's ControlNets, in the order of their control pictures; none for a plain pipeline."""
    found = getattr(pipe, PART, None)
    return [] if found is None else list(getattr(found, "nets", [found]))


def _open(place: str | Path, dtype: torch.dtype) -> ControlNetModel:
    folder = Path(place).expanduser()
    for inner in (folder, model_folder(folder) / PART):
        config = inner / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("_class_name") == ControlNetModel.__name__:
            return ControlNetModel.from_pretrained(str(inner), torch_dtype=dtype, local_files_only=True)
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(place)):
        try:
            return ControlNetModel.from_pretrained(str(place), torch_dtype=dtype)
        except OSError as error:
            line = str(error).strip().split("\n")[0]
            raise ValueError(f"no folder {folder.absolute()}, no ControlNet {place!r} on the Hub: {line}") from error
    raise ValueError(
        f"a ControlNet is a folder of diffusers' layout, a run folder, or a Hub id; got {folder.absolute()}"
    )
