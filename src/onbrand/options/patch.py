"""What `patch` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import tyro

from onbrand.options._base import File, Number, Word, check_options


@dataclass(frozen=True)
class PatchOptions:
    """What `patch` can be told.

    Attributes:
        trainer: diffusers: its examples train_text_to_image*.py and train_controlnet*.py; kohya: sd-scripts'
            train_network.py, sdxl_train.py, fine_tune.py and others
        script: your own copy of the trainer's script
        prior: the brand's folder, as the script will find it
        start_timestep: the first timestep that you will sample with; 951: of 20 steps, as most models space them
        version: the trainer's version; a warning says if its scripts were not tried
        write: change the script itself, besides printing the patch
    """

    trainer: Annotated[Literal["diffusers", "kohya"], tyro.conf.Positional]
    _: KW_ONLY
    script: File
    prior: File = "brand"
    start_timestep: Number = 951
    version: Word | None = None
    write: bool = False

    def __post_init__(self) -> None:
        check_options(self)
