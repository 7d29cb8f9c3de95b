"""merge: a LoRA put into a model's own weights, or taken out again."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._output import RUN, in_parts, works_in
from onbrand.io import versions
from onbrand.options._verb import command, verb
from onbrand.options.merge import MergeOptions

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
    with in_parts(out, record, PARTS, INDEXES) as draft:
        model = options.model or base_of(lora)
        pipe = open_model(model, options.device, lora=lora, scale=scale, config=options.model_config)
        trained_start = pipeline.trained_start_of(pipe) if scale > 0 else None
        fuse_words(pipe, trained_start)
        prior = open_prior(None, lora) if trained_start else None
        pipeline.save(pipe, draft, prior, trained_start, options.single_file)
    print(f"wrote {out}")
    return out
