"""What `fit` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from onbrand.options._base import Count, Dtype, File, First, Need, Number, Size, Word, check_options, own_first
from onbrand.options.hub import HUB_NEEDS, HubSettings

Regression = Literal["ridge", "reduced-rank", "cca"]


@own_first
@dataclass(frozen=True)
class FitOptions(HubSettings):
    """What `fit` can be told.

    Attributes:
        images: folder of photos with a metadata.jsonl (file_name, text, class), with .txt captions, or with none
        model: folder, .safetensors or .ckpt file, Hub id owner/name of a Stable Diffusion model,
            "tiny" or "tiny-xl"
        output_dir: the brand's folder: prior.safetensors, fit.json, means/<class>.png, latents/ (the cache)
        k: principal components to find in each class; 0 fits the means alone, in one pass
        text: regression from the captions: ridge, or of lower rank: reduced-rank, cca
        split: train, test, ...: which part of photos that come in several
        resolution: of the images in pixels. Default: the model's own
        enable_bucket: fit photos of other ratios at sizes of their own, of the resolution's area, where a class has 50
            of them, so that less of each is padding
        bucket_reso_steps: the sides of these sizes are multiples of it. Default: 64, for small images less
        random_flip: fit mirrored images too; training then mirrors as well
        batch_size: images encoded at a time
        device: cuda, cpu, ... Default: a GPU if there is one
        dtype: of the encoding; statistics are taken in float64
        latents_dtype: of the cached latents: float32, or float16 at half the size. Training reads what is there
        latents_from: kohya or ai-toolkit: read what this trainer has cached beside the photos, if it is of the whole
            photo at this size; the others are encoded
        model_config: of a model in one file: a folder of its kind in diffusers' layout, with weights or without
    """

    images: First
    model: File
    output_dir: File
    _: KW_ONLY
    k: Number = 16
    text: Regression = "ridge"
    split: Word | None = None
    resolution: Size = None
    enable_bucket: bool = False
    bucket_reso_steps: Count | None = None
    random_flip: bool = False
    batch_size: Count = 8
    device: Word | None = None
    dtype: Dtype = "float32"
    latents_dtype: Literal["float32", "float16"] = "float32"
    latents_from: Literal["kohya", "ai-toolkit"] | None = None
    model_config: File | None = None

    def __post_init__(self) -> None:
        check_options(self, NEEDS)


NEEDS = (
    Need(("text",), "k", "k of 1 or more", lambda k: k > 0),
    Need(("bucket_reso_steps",), "enable_bucket", "enable_bucket", bool),
    *HUB_NEEDS,
)
"""What a setting needs to have an effect."""
