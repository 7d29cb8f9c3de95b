"""What `export` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from onbrand.options._base import File, First, Need, Word, check_options


@dataclass(frozen=True)
class ExportOptions:
    """What `export` can be told.

    Attributes:
        source: the brand's folder (or its prior.safetensors), or a run that was trained with its prior
        format: comfyui: class means that LoadLatent reads, workflows and the node pack; webui: class means as images
            for img2img, and a script for Forge; checkpoint: the run's whole model as one file, model.safetensors
        output_dir: folder for the files, which are laid out as in the program's own folder, to be copied there
        model: comfyui: the checkpoint that the workflows load; webui: the model that draws the images. Default: the one
            that the brand was fitted with, or the run's
        device: cuda, cpu, ... Default: a GPU if there is one
        model_config: as for `fit`
    """

    source: First
    _: KW_ONLY
    format: Literal["comfyui", "webui", "checkpoint"]
    output_dir: File
    model: File | None = None
    device: Word | None = None
    model_config: File | None = None

    def __post_init__(self) -> None:
        check_options(self, NEEDS)


NEEDS = (
    Need(("model",), "format", "format comfyui or webui", lambda value: value != "checkpoint"),
    Need(("device", "model_config"), "format", "format webui or checkpoint", lambda value: value != "comfyui"),
)
"""What a setting needs to have an effect."""
