"""merge: a LoRA put into a model's own weights, or taken out again."""

from __future__ import annotations

import os
from pathlib import Path

from onbrand.api._output import LOCK, works_in
from onbrand.errors import OnbrandError
from onbrand.io import discard, whole_folder
from onbrand.options._verb import verb
from onbrand.options.merge import MergeOptions

UNFINISHED, INDEX = ".merged", "model_index.json"
"""The model before it is moved to its place, part by part; the part that makes a folder a model, which is the last."""
PARTS = (
    "controlnet", "feature_extractor", "image_encoder", "onbrand", "safety_checker", "scheduler", "text_encoder",
    "tokenizer", "unet", "vae",
)  # fmt: skip
"""Folders of a model."""


@verb(MergeOptions)
@works_in("output_dir", "close other programs, or take device cpu")
def merge(options: MergeOptions) -> Path:
    """Put a LoRA into a model's own weights, for programs that take whole models alone, or take it out again.

    Returns:
        The folder output_dir.

    Raises:
        OnbrandError: no such LoRA or model, one that does not fit, or an output_dir that is not empty.
    """
    from onbrand.api._inputs import open_model, open_prior
    from onbrand.models import pipeline
    from onbrand.models.checkpoint import base_of
    from onbrand.models.lora import fuse_words

    out, lora, scale = Path(options.output_dir), options.lora, options.lora_scale
    clear(out)
    model = options.model or base_of(lora)
    pipe = open_model(model, options.device, lora=lora, scale=scale, config=options.model_config)
    trained_start = pipeline.trained_start_of(pipe) if scale > 0 else None
    fuse_words(pipe, trained_start)
    with whole_folder(out / UNFINISHED) as draft:
        pipeline.save(pipe, draft, open_prior(None, lora) if trained_start else None, trained_start)
    for part in sorted(os.listdir(out / UNFINISHED), key=lambda name: (name == INDEX, name)):
        os.replace(out / UNFINISHED / part, out / part)
    discard(out / UNFINISHED)
    print(f"wrote {out}")
    return out


def clear(out: Path) -> None:
    """Remove what a merge that was killed has moved; OnbrandError if the folder holds anything else."""
    if (out / UNFINISHED / INDEX).is_file():  # the folder was empty then, and is no model yet
        for part in sorted(os.listdir(out)):
            if part in PARTS:
                discard(out / part)
    discard(out / UNFINISHED)
    rest = sorted(set(os.listdir(out)) - {LOCK})
    if rest:
        raise OnbrandError(
            "folder", f"a merged model goes into a folder of its own; {out} is not empty ({rest[0]}): take another"
        )
