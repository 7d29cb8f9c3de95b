"""merge: a LoRA put into a model's own weights, or taken out again."""

from __future__ import annotations

import os
from pathlib import Path

from onbrand.api._output import LOCK, works_in
from onbrand.errors import OnbrandError
from onbrand.io import discard, read_json, versions, whole_folder, write_json
from onbrand.options._verb import command, verb
from onbrand.options.merge import MergeOptions

UNFINISHED, RUN = ".merged", "run.json"
"""The model before it is moved to its place, part by part; what made it."""
INDEXES = ("model_index.json", "model.safetensors")
"""The parts that make a folder a model: removed first and moved last."""
PARTS = (
    *INDEXES, "controlnet", "feature_extractor", "image_encoder", "onbrand", RUN, "safety_checker", "scheduler",
    "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
)  # fmt: skip
"""Of a merged model."""


@verb(MergeOptions)
@works_in("output_dir", "close other programs, or take device cpu")
def merge(options: MergeOptions) -> Path:
    """Put a LoRA into a model's own weights, for programs that take whole models alone, or take it out again.

    Returns:
        The folder output_dir.

    Raises:
        OnbrandError: no such LoRA or model, one that does not fit, or an output_dir that holds anything but what the
            same command made.
    """
    from onbrand.api._inputs import open_model, open_prior
    from onbrand.models import pipeline
    from onbrand.models.checkpoint import base_of
    from onbrand.models.lora import fuse_words

    out, lora, scale = Path(options.output_dir), options.lora, options.lora_scale
    record = {"command": command("merge", options), "versions": versions()}
    check_empty(out, record["command"])
    model = options.model or base_of(lora)
    pipe = open_model(model, options.device, lora=lora, scale=scale, config=options.model_config)
    trained_start = pipeline.trained_start_of(pipe) if scale > 0 else None
    fuse_words(pipe, trained_start)
    with whole_folder(out / UNFINISHED) as draft:
        prior = open_prior(None, lora) if trained_start else None
        pipeline.save(pipe, draft, prior, trained_start, options.single_file)
        write_json(draft / RUN, record)
    for part in PARTS:
        discard(out / part)
    for part in sorted(os.listdir(out / UNFINISHED), key=lambda name: (name in INDEXES, name)):
        os.replace(out / UNFINISHED / part, out / part)
    discard(out / UNFINISHED)
    print(f"wrote {out}")
    return out


def check_empty(out: Path, words: object) -> None:
    """OnbrandError if the folder holds anything but what `words`, a command, or a merge that was killed left in it."""
    rest = set(os.listdir(out)) - {LOCK, UNFINISHED}
    if any((out / UNFINISHED / index).is_file() for index in INDEXES) or (
        rest and read_json(out / RUN).get("command") == words
    ):
        rest -= set(PARTS)
    if rest:
        raise OnbrandError(
            "folder", f"a merged model goes into a folder of its own; {out} is not empty ({min(rest)}): take another"
        )
