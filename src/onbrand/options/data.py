"""What `data` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import tyro

from onbrand.options._base import Count, File, check_options


@dataclass(frozen=True)
class DataOptions:
    """What `data` can be told.

    Attributes:
        name: which dataset
        output_dir: folder for the images
        split: which part; photos have no validation
        num_images: the first images only. Default: all
    """

    name: Annotated[Literal["garments", "photos", "try-on"], tyro.conf.Positional]
    output_dir: File
    _: KW_ONLY
    split: Literal["train", "validation", "test"] = "train"
    num_images: Count | None = None

    def __post_init__(self) -> None:
        check_options(self)
