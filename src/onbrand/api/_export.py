"""export: a prior or a run as other programs read it."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._output import in_parts, works_in
from onbrand.errors import OnbrandError
from onbrand.io import versions
from onbrand.options._verb import command, verb
from onbrand.options.export import ExportOptions


@verb(ExportOptions)
@works_in("output_dir", "close other programs, or take device cpu")
def export(options: ExportOptions) -> Path:
    """Write a brand's prior, or a run, as ComfyUI, Forge and A1111 read it.

    Nothing of them is needed here, and nothing of onbrand there, but for the node that checks images.

    Returns:
        The folder output_dir.

    Raises:
        OnbrandError: no such prior or run, a LoRA to be written as a whole model, or an output_dir that holds anything
            but what the same command made.
    """
    from onbrand.api._inputs import open_model, open_prior, prior_of
    from onbrand.exporting import comfyui, webui
    from onbrand.models import pipeline
    from onbrand.models.checkpoint import base_of, is_lora, model_folder, trained_start_in
    from onbrand.models.controlnet import nets_of
    from onbrand.models.lora import KOHYA
    from onbrand.sampling.checks import check_prior

    source, out = Path(options.source), Path(options.output_dir)
    parts = {"comfyui": comfyui.PARTS, "webui": webui.PARTS, "checkpoint": ("model.safetensors", "onbrand")}
    record = {"command": command("export", options), "versions": versions()}
    lora = is_lora(source)
    with in_parts(out, record, parts[options.format]) as draft:
        if options.format == "checkpoint":
            if lora:
                raise OnbrandError("option", f"{source} is a LoRA: write it with `onbrand merge --single_file`")
            pipe = open_model(source, options.device, config=options.model_config)
            if nets_of(pipe):
                raise OnbrandError("option", f"{source} has a ControlNet, which is no part of one file: take its base")
            pipeline.save(pipe, draft, open_prior(None, source), pipeline.trained_start_of(pipe), single_file=True)
        else:
            prior = prior_of(source)
            name = (source.parent if source.is_file() else source).resolve().name or "brand"
        if options.format == "comfyui":
            run = name if (model_folder(source) / "model_index.json").is_file() else prior.provenance.model
            model = Path(options.model or (base_of(source) if lora else run)).name
            file = f"{model.removesuffix('.safetensors')}.safetensors"
            kohya = model_folder(source) / KOHYA if lora else None
            comfyui.write(draft, name, prior, file, trained_start_in(source), kohya)
        elif options.format == "webui":
            pipe = open_model(options.model or prior.provenance.model, options.device, config=options.model_config)
            check_prior(pipe, prior, "mean", None)
            webui.write(draft, name, prior, pipe)
    print(f"wrote {out}")
    return out
