"""The options of `compare`. No torch."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from onbrand.options._base import (
    Count,
    Decay,
    File,
    First,
    NameOrFile,
    NotNegative,
    Positive,
    Rate,
    Word,
    check_options,
    own_first,
)
from onbrand.options.train import Precision

DEFAULT_METHODS = (
    "stock/noise", "stock/mean", "stock/text+zeromean+look1", "plain/noise", "plain/mean", "plain/mean+zeromean+look2",
    "plain/text+zeromean+look1", "mean-window/mean", "mean-constant/mean", "text-constant/text+zeromean",
)  # fmt: skip
"""Methods by default: without training, with plain training, with the paper's, with ours."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What all methods of a comparison share; a method's own settings win.

    Attributes:
        max_train_steps: optimizer steps of a training (`:300` in a name says another number)
        train_batch_size: images a step
        learning_rate: after a warm-up of a twentieth of the steps, at most 50
        ema_decay: decay of the exponential moving average of the weights. Default: the last weights
        caption_dropout_rate: share of captions dropped in training, for guidance
        mixed_precision: of training's arithmetic, as for `train`
        num_inference_steps: of the sampler (`+8` in a name says another number)
        guidance_scale: of classifier-free guidance (`+g3` in a name)
        batch_size: images made at a time
    """

    max_train_steps: Count = 1000
    train_batch_size: Count = 16
    learning_rate: Positive = 1e-5
    ema_decay: Decay | None = None
    caption_dropout_rate: Rate = 0.1
    mixed_precision: Precision = "auto"
    num_inference_steps: Count = 20
    guidance_scale: NotNegative = 7.5
    batch_size: Count = 8

    def __post_init__(self) -> None:
        check_options(self)


_JSON = PrimitiveConstructorSpec[dict[str, Any]](
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: dict(json.loads(words[0])),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)


@own_first
@dataclass(frozen=True)
class CompareOptions(CompareSettings):
    """The options of `compare`.

    Attributes:
        images: folder of the brand's photos, as for `fit`
        model: model to start from, as for `fit`
        output_dir: folder for all of it: brand/, models/, runs/, images/, compare.json, compare.md, figures/,
            report.html
        methods: names of methods, TRAINING[:option]/START[+option][@set], which `--list` shows (plain/mean,
            text-constant:300/text+zeromean@few), and .yaml files of methods of your own, each
            NAME: {train: {...}, generate: {...}} in the settings of these two verbs
        prompts: file of requests, as for `generate`. Default: 24 captions of the photos
        prompt_sets: other files of requests, each after its name, for methods that end in @name
        reference_images: folder of real images that no one learns from, checked as the row "real", and as the model's
            autoencoder returns them, the most that a start or training can reach, as the row "autoencoder"
        prior: the brand's folder. Default: fitted into output_dir/brand
        split: which part of the photos, as for `fit`
        attributes: attribute classifier, as for `check`
        clip: folder of a CLIPModel, or shipped, for CLIP similarity
        questions: {title: [method, ...]}: the first is compared with each of the others, and all are drawn
        device: cuda, cpu, ... Default: a GPU if there is one
        model_config: as for `fit`
    """

    images: First
    model: File
    output_dir: File
    _: KW_ONLY
    methods: tuple[NameOrFile, ...] = DEFAULT_METHODS
    prompts: File | None = None
    prompt_sets: dict[str, File] = field(default_factory=dict)
    reference_images: File | None = None
    prior: File | None = None
    split: Word | None = None
    attributes: File | None = None
    clip: File | None = None
    questions: Annotated[dict[str, list[str]], _JSON] = field(default_factory=dict)
    device: Word | None = None
    model_config: File | None = None
