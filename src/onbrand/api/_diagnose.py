"""diagnose: does a model that starts from noise miss this brand, how badly, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onbrand.api._output import works_in
from onbrand.io import keep_json
from onbrand.options._verb import command, verb
from onbrand.options.diagnose import DiagnoseOptions


@verb(DiagnoseOptions)
@works_in("brand", "close other programs", use="visited")
def diagnose(options: DiagnoseOptions) -> dict[str, Any]:
    """Say whether a model that starts from noise will miss the brand's look, how badly, and what to do.

    Needs no network pass: the prior and the sampler's noise schedule are enough (Eq. 4-7, per component). Prints one
    line of numbers a class and the findings, each with a code explained in docs/concepts/findings.md; writes
    brand/leak.json.

    Returns:
        What leak.json says: numbers by class, and the findings.

    Raises:
        OnbrandError: a scheduler that no start can enter, or that cannot be rescaled, with the reason; a model with
            another autoencoder than the brand was fitted with.
    """
    from onbrand.api._inputs import open_model
    from onbrand.core.diagnosis import diagnose_classes, lines_of
    from onbrand.core.prior import Prior, name_of
    from onbrand.models import pipeline
    from onbrand.models.families import family_of
    from onbrand.models.scheduler import VANISHING, read_scheduler, with_options, with_zero_snr
    from onbrand.sampling.checks import check_prior

    prior = Prior.load(options.brand)
    pipe = open_model(options.model or prior.provenance.model, "cpu", config=options.model_config)
    check_prior(pipe, prior, "mean", None)
    base = with_zero_snr(pipe.scheduler) if options.rescale_betas_zero_snr else pipe.scheduler
    steps = options.num_inference_steps
    schedule = read_scheduler(with_options(base, options.scheduler, options.timestep_spacing), steps)
    trained_start, abar, first = pipeline.trained_start_of(pipe), schedule.abar, schedule.first
    offset = options.trained_noise_offset
    offset = family_of(pipe).noise_offsets.get(pipeline.name_of(pipe), 0.0) if offset is None else offset
    parts = {
        one.size: diagnose_classes(
            one,
            abar,
            first,
            schedule.timesteps,
            trained_start,
            last=len(schedule.abars) - 1,
            prompts=not trained_start and abar >= VANISHING,
            noise_offset=offset,
        )
        for one in prior.all
    }
    print(f"{schedule.name}, {steps} steps: starts at timestep {first:g}, abar {abar:.4g}\n")
    for size, part in parts.items():
        print("\n".join([*([name_of(size)] if len(parts) > 1 else []), *lines_of(*part)]))
    classes, entries = parts.pop(prior.size)
    result = {
        "scheduler": schedule.name,
        "num_inference_steps": steps,
        "start_timestep": first,
        "abar": abar,
        "trained_noise_offset": offset,
        "classes": classes,
        "findings": entries,
        "command": command("diagnose", options),
    }
    if parts:
        named = [{"resolution": list(size), "classes": own, "findings": found} for size, (own, found) in parts.items()]
        result["buckets"] = named
    brand = Path(options.brand)
    folder = brand if brand.is_dir() else brand.parent
    keep_json(folder / "leak.json", result)
    return result
