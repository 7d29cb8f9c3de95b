"""The names that programs give a LoRA's layers: kohya's, diffusers', peft's, ComfyUI's, LyCORIS', those of old
attention processors. Each is looked up among the layers of this model, so none is taken for one that is not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from onbrand.models import families
from onbrand.models.families import encoders_of
from onbrand.models.families.sdxl import SDXL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from diffusers import DiffusionPipeline

    from onbrand.models.families import Family

Layer = tuple[str, str]
"""A part of the pipeline, "unet", "text_encoder" or another encoder, and the layer's name in it."""
PREFIX = re.compile(
    r"(?:(?P<second>te2|text_encoder_2|clip_g)|base_model_model|base_model|model|module|orig_mod|lora|lycoris|unet|diffusion_model|cond_stage_model|"
    r"text_encoders?|te1?|clip_[lh]|transformer|text_model)_"
)
"""What may stand before a layer's name, in any number: of the part, of the program, of what wrapped the network.
second: of a second text encoder, whose layers are called as the first one's."""
SECOND = "2 "
"""Before the names of a second text encoder's layers, where they are looked up."""
PART = re.compile(
    r"(?P<layer>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<way>down|up|mid|A|B)"
    r"|[._](?P<other>alpha|dora_scale|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r")(?P<rest>(?:\.[^.]+){0,2})"
)
"""A tensor's name: of its layer, of what it is there; behind it peft's name of the adapter, and .weight."""
WAYS = {"A": "down", "B": "up"}
"""peft's names -> kohya's."""
FAMILIES = {
    "Flux": r"(^|_)(double|single)_blocks_|single_transformer_blocks",
    "Stable Diffusion 3": r"joint_(transformer_)?blocks|(^|_)te3_|text_encoder_3",
    "a model of video": r"motion_modules|temporal_transformer",
}
"""Kinds of model that are of no family, by what is in the names of their LoRAs' layers alone."""
KINDS = {
    "a textual inversion (an embedding)": r"^(emb_params|string_to_param|<[^>]+>|clip_[lg])$",
    "a Control-LoRA": r"lora_controlnet|^(input_hint_block|control_model)|\.zero_convs\.",
    "a whole model": r"^(model\.diffusion_model|first_stage_model)\.|^(down_blocks|encoder|text_model)\b(?!.*lora)",
    "an OFT": r"oft_",
    "an (IA)3": r"on_input|ia3_",
    "a GLoRA": r"\.[ab][12]\.weight$",
    "a VeRA": r"vera_lambda",
    "a full change of layers (LyCORIS full)": r"\.(diff|diff_b|w_norm|b_norm)$",
}
"""What a file without a LoRA may be, by its tensors' names."""


def layers_of(pipe: DiffusionPipeline) -> dict[str, Layer]:
    """The layers that can have a LoRA, by each of their names, written with _ for the dots.

    In the UNet: diffusers' names, those without the place in to_out.0, and those of the original checkpoints.
    """
    names: dict[str, Layer] = {}
    encoders = list(encoders_of(pipe))
    for part in ("unet", *encoders):
        network = getattr(pipe, part)
        mark = SECOND if part in encoders[1:] else ""
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                short = name.removeprefix("text_model.")
                others = [short.removesuffix(".0") if short.endswith("to_out.0") else short, ldm_name(name, network)]
                if part in encoders:
                    others = [re.sub(r"self_attn\.([qkv]|out)_proj", r"self_attn.to_\1", short)]
                for one in (short, *others):
                    names.setdefault(mark + one.replace(".", "_"), (part, name))
    return names


def layer_of(name: str, layers: Mapping[str, Layer]) -> Layer | None:
    """The layer that a file calls `name`; None: this model has none that is called so."""
    rest, mark = plain(name), ""
    while mark + rest not in layers:
        match = PREFIX.match(rest)
        if match is None:
            return None
        rest, mark = rest[match.end() :], SECOND if match["second"] else mark
    return layers[mark + rest]


def plain(name: str) -> str:
    """A layer's name with _ for the dots, without what attention processors had between."""
    return re.sub(r"_processor_(to_)", r"_\1", re.sub(r"[.:/]+", "_", name).lstrip("_"))


def split(name: str) -> tuple[str, str, str] | None:
    """A tensor's name -> its layer's, what it is there (kohya's and LyCORIS' words), peft's name of the adapter ("").

    None: it is nothing of a LoRA.
    """
    match = PART.fullmatch(name)
    if match is None:
        return None
    word = match["way"] or match["other"]
    rest = [part for part in match["rest"].split(".") if part]
    if rest and rest[-1] == "weight":
        rest.pop()
    if len(rest) > 1 or "bias" in rest:
        return None
    return match["layer"], WAYS.get(word, word), rest[0] if rest else ""


def other_family(names: Iterable[str], metadata: Mapping[str, str], own: Family) -> str | None:
    """The kind of model that a LoRA says it is for, if it is not this family."""
    texts = [plain(name) for name in names]
    others = {family.name: family.lora_names for family in families.FAMILIES if family is not own}
    for name, pattern in (others | FAMILIES).items():
        if pattern and any(re.search(pattern, text) for text in texts):
            return name
    about = " ".join(metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture")).lower()
    for family, pattern in (
        (SDXL.name, "xl"),
        ("Flux", "flux"),
        ("Stable Diffusion 3", r"sd3|diffusion-3"),
    ):
        if re.search(pattern, about) and family != own.name:
            return family
    return None


def kind_of(names: Iterable[str]) -> str | None:
    """What a file is whose tensors are called so, if it is no LoRA."""
    names = list(names)
    return next((kind for kind, pattern in KINDS.items() if any(re.search(pattern, name) for name in names)), None)


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
"""diffusers' names -> those of Stable Diffusion's original checkpoints: in a block, and outside of blocks."""


def ldm_name(name: str, unet: Any) -> str:
    """What Stable Diffusion's original checkpoints call a UNet's layer; its own name if they have none such."""
    config = unet.config
    layers = config.get("layers_per_block") if isinstance(config, dict) else None
    if name in ENDS or not isinstance(layers, int):
        return ENDS.get(name, name)
    match = re.fullmatch(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    side, block, module, place, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if module == "resnets":
        rest = RESNET.get(rest, rest)
    first = block * (layers + 1)
    if side == "mid_block":
        return f"middle_block.{2 * place if module == 'resnets' else 1}.{rest}"
    if module == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if module == "upsamplers":
        attends = "CrossAttn" in config["up_block_types"][block]
        return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
    number, way = (first + 1 + place, "input") if side == "down_blocks" else (first + place, "output")
    return f"{way}_blocks.{number}.{int(module == 'attentions')}.{rest}"
