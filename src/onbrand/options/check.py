"""What `check` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.options._base import File, First, Need, Rate, Word, check_options


@dataclass(frozen=True)
class CheckOptions:
    """What `check` can be told.

    Attributes:
        images: folder of images: with generate's manifest.jsonl, with a metadata.jsonl, or with .txt prompts
        against: folder of the brand's photos, as for `fit`
        require: the share of images, in [0, 1], that must pass every check for the exit code to be 0
        json: print check.json instead of the table
        prior: the brand's folder (or its prior.safetensors), for class, diversity and distance
        model: model whose autoencoder encodes for the prior. Default: the one that the brand was fitted with
        attributes: attribute classifier: a folder with reader.json or of a CLIPModel, or shipped: garments,
            garments-clip, photos
        clip: a CLIPModel besides an attribute classifier: its folder, or shipped
        split: which part of `against`, as for `fit`
        pose: pose net for figures: pose_landmark_full.tflite, or the mediapipe wheel that holds it (onbrand[pose])
        device: cuda, cpu, ..., for the autoencoder. Default: a GPU if there is one
        model_config: as for `fit`
    """

    images: First
    against: File
    _: KW_ONLY
    require: Rate | None = None
    json: bool = False
    prior: File | None = None
    model: File | None = None
    attributes: File | None = None
    clip: File | None = None
    split: Word | None = None
    pose: File | None = None
    device: Word | None = None
    model_config: File | None = None

    def __post_init__(self) -> None:
        check_options(self, NEEDS)


NEEDS = (Need(("model",), "prior", "prior", lambda prior: prior is not None),)
"""What a setting needs to have an effect."""
