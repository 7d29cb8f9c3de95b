"""fit: from photos to the brand's prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onbrand.api._output import pushed, works_in
from onbrand.io import versions, write_json
from onbrand.options._verb import command, verb
from onbrand.options.fit import FitOptions


@verb(FitOptions)
@works_in("output_dir", "take a smaller batch_size or resolution", use="together")
@pushed
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
    from onbrand.core.prior import BUCKETS, FILE, Prior, joined, name_of, save_all
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.evaluation.likelihood import write_unseen
    from onbrand.models import fitting
    from onbrand.models.pipeline import DTYPES, fingerprint, text_fingerprint
    from onbrand.ranks import rank

    out, dtype = fitting.check_folder(Path(options.output_dir), Path(options.images)), options.dtype
    photos = open_photos(options.images, options.split)
    # bfloat16 has lost the digits that networks are known by: their fingerprints are taken before they are rounded
    first = "float32" if dtype == "bfloat16" else dtype
    pipe = open_model(options.model, options.device, first, config=options.model_config)
    vae, encoder = fingerprint(pipe.vae), text_fingerprint(pipe)
    if dtype == "bfloat16":
        pipe.to(DTYPES[dtype])
    size, parts = size_of(pipe, options.resolution), {}
    step, kept = options.bucket_reso_steps, (options.latents_dtype, options.latents_from or "")
    cells = fitting.buckets_of(pipe, photos, size, step) if options.enable_bucket else {size: photos}
    fitters = {one: fitting.fitter_for(pipe, one, options.k) for one in cells}
    for one, own in cells.items():
        parts[one] = fitting.encode_photos(
            pipe, own, out / LATENTS, one, options.random_flip, options.batch_size, *kept
        )
        fitting.share_sums(pipe, fitters[one], *parts[one])
    if rank():
        return {}
    background = fitting.background_of_all([record for _, summary in parts.values() for record in summary.used])
    priors = []
    for one, (store, summary) in parts.items():
        say_summary(summary)
        gaussians = fitting.fit_gaussians(pipe, fitters[one], store, summary)
        text = fitting.fit_text(pipe, store, summary.used, gaussians, options.text)
        read = encoder if text else None
        origin = fitting.provenance_of(pipe, vae, read, one, str(options.model), options.random_flip, background)
        priors.append(Prior(gaussians, origin, text))
    prior, results = joined(priors), []
    save_all(prior, out)
    for one, (store, summary) in parts.items():
        place = "" if one == prior.size else name_of(one)
        write_unseen(out / BUCKETS / place if place else out, pipe, store, summary, prior.at(one))
        files = fitting.draw_means(pipe, prior.at(one), out / "means" / place)
        results.append(fitting.describe_fit(prior.at(one), summary, files, options.k))
        print("\n".join(fitting.lines_of(results[-1], prior.at(one))))
    result = results[0] | {"command": command("fit", options), "versions": versions()}
    result |= {"fingerprints": {"prior": prior.fingerprint, "VAE": vae}}
    if results[1:]:
        result["buckets"] = [fitting.describe_bucket(other) for other in results[1:]]
    write_json(out / "fit.json", result)
    print(f"wrote {out / FILE}, fit.json and means/")
    return result
