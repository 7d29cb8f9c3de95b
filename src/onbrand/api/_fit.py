"""fit: from photos to the brand's prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onbrand.api._output import works_in
from onbrand.io import versions, write_json
from onbrand.options._verb import command, verb
from onbrand.options.fit import FitOptions


@verb(FitOptions)
@works_in("output_dir", "take a smaller batch_size or resolution")
def fit(options: FitOptions) -> dict[str, Any]:
    """Fit the brand's prior: what its photos have in common, for each class.

    Encodes every photo once with the model's autoencoder, fits a Gaussian per class (Eq. 9) and its regression from
    the captions, and draws the class means. Killed and started again, it goes on with the encoding where it was.

    Returns:
        What fit.json says: images used, counts by class, refused files with reasons, fingerprints.

    Raises:
        OnbrandError: no usable photo, an unusable model, device, resolution, k or text, an output_dir inside of the
            photos.
    """
    from onbrand.api._inputs import open_model, open_photos, say_summary, size_of
    from onbrand.core import Prior
    from onbrand.core.prior import FILE as PRIOR
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.evaluation.likelihood import write_unseen
    from onbrand.models import fitting
    from onbrand.models.pipeline import DTYPES, fingerprint, text_fingerprint

    out, dtype = fitting.check_folder(Path(options.output_dir), Path(options.images)), options.dtype
    photos = open_photos(options.images, options.split)
    # bfloat16 has lost the digits that networks are known by: their fingerprints are taken before they are rounded
    first = "float32" if dtype == "bfloat16" else dtype
    pipe = open_model(options.model, options.device, first, config=options.model_config)
    vae, encoder = fingerprint(pipe.vae), text_fingerprint(pipe)
    if dtype == "bfloat16":
        pipe.to(DTYPES[dtype])
    size = size_of(pipe, options.resolution)
    fitter = fitting.fitter_for(pipe, size, options.k)
    store, summary = fitting.encode_photos(
        pipe, photos, out / LATENTS, size, options.random_flip, options.batch_size, options.latents_dtype
    )
    state = fitting.processes(pipe)
    if state and not state.is_main_process:
        return {}
    say_summary(summary)

    gaussians = fitting.fit_gaussians(pipe, fitter, store, summary.used)
    text = fitting.fit_text(pipe, store, summary.used, gaussians, options.text)
    origin = fitting.provenance_of(
        pipe, vae, encoder if text else None, size, str(options.model), options.random_flip, summary.used
    )
    prior = Prior(gaussians, origin, text)
    prior.save(out / PRIOR)
    write_unseen(out, pipe, store, summary, prior)
    files = fitting.draw_means(pipe, prior, out / "means")

    result = fitting.describe_fit(prior, summary, files, options.k)
    result |= {"command": command("fit", options), "versions": versions()}
    result |= {"fingerprints": {"prior": prior.fingerprint, "VAE": vae}}
    write_json(out / "fit.json", result)
    print("\n".join(fitting.lines_of(result, prior)))
    print(f"wrote {out / PRIOR}, fit.json and means/")
    return result
