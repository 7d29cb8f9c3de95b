"""What `merge` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.options._base import File, First, Word, check_options


@dataclass(frozen=True)
class MergeOptions:
    """What `merge` can be told.

    Attributes:
        lora: a LoRA: its run folder or its .safetensors file
        output_dir: folder for the whole model, in diffusers' layout
        single_file: write the model as one file instead, model.safetensors in output_dir, as ComfyUI and Forge read it
        model: model to put it into. Default: the one that it was trained on
        lora_scale: weight of the LoRA; 1: as trained; -1: what was merged is taken out again (to float32's rounding)
        device: cuda, cpu, ... Default: a GPU if there is one
        model_config: as for `fit`
    """

    lora: First
    output_dir: File
    _: KW_ONLY
    model: File | None = None
    single_file: bool = False
    lora_scale: float = 1.0
    device: Word | None = None
    model_config: File | None = None

    def __post_init__(self) -> None:
        check_options(self)
