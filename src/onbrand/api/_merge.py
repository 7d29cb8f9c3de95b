"""merge: a LoRA put into a model's own weights, or taken out again."""

from __future__ import annotations

from pathlib import Path

from onbrand.errors import OnbrandError
from onbrand.io import whole_folder
from onbrand.options._verb import verb
from onbrand.options.merge import MergeOptions


@verb(MergeOptions)
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
    if out.is_file():
        raise OnbrandError("folder", f"a merged model is a folder; got {out}, a file: take another output_dir")
    if out.is_dir() and any(out.iterdir()):
        raise OnbrandError("folder", f"a merged model goes into a folder of its own; {out} is not empty: take another")
    model = options.model or base_of(lora)
    pipe = open_model(model, options.device, lora=lora, scale=scale, config=options.model_config)
    trained_start = pipeline.trained_start_of(pipe) if scale > 0 else None
    fuse_words(pipe, trained_start)
    prior = open_prior(None, lora) if trained_start else None
    with whole_folder(out) as draft:  # a kill leaves nothing that the same command would stumble over
        pipeline.save(pipe, draft, prior, trained_start)
    print(f"wrote {out}")
    return out
