"""merge: a LoRA put into a model's own weights, or taken out again."""

from __future__ import annotations

from pathlib import Path


def merge(
    lora: str | Path, out: str | Path, *, model: str | Path | None = None, scale: float = 1.0, device: str | None = None
) -> Path:
    """Put a LoRA into a model's own weights, for programs that take whole models alone, or take it out again.

    Args:
        lora: a LoRA: its run folder or its .safetensors file
        out: folder for the whole model, in diffusers' layout
        model: model to put it into; left out: the one that it was trained on
        scale: how strongly it counts; 1: as trained; -1: what was merged is taken out again (to float32's rounding)
        device: cuda, cpu, ...; left out: a GPU where there is one

    Returns:
        The folder `out`.

    Raises:
        ValueError: no such LoRA or model, one that does not fit, or an `out` that is not empty.
    """
    from onbrand.api._inputs import open_model, open_prior
    from onbrand.models import pipeline
    from onbrand.models.checkpoint import base_of
    from onbrand.models.lora import fuse_words

    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"a merged model goes into a folder of its own; {out} is not empty: take another")
    pipe = open_model(base_of(lora) if model is None else model, device, lora=lora, scale=scale)
    offset = pipeline.offset_of(pipe) if scale > 0 else None
    fuse_words(pipe, offset)
    pipeline.save(pipe, out, open_prior(None, lora) if offset else None, offset)
    print(f"wrote {out}")
    return out
