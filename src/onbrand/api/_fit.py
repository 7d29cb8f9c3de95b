"""fit: from photos to the brand's prior."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from onbrand.io import command, versions, write_json


def fit(
    photos: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    k: int = 16,
    text: Literal["ridge", "reduced-rank", "cca"] = "ridge",
    split: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    flip: bool = False,
    batch: int = 8,
    device: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Fit the brand's prior: what its photos have in common, for each kind of picture.

    Encodes every photo once with the model's autoencoder, fits a Gaussian per class (Eq. 9) and its regression from
    the captions, and draws the class means. Killed and started again, it goes on with the encoding where it was.

    Args:
        photos: folder of photos with a metadata.jsonl (file_name, text, class), with .txt captions, or with none
        model: folder, .safetensors or .ckpt file, Hub id owner/name of a Stable Diffusion model, or "tiny"
        out: the brand's folder: prior.safetensors, fit.json, means/<class>.png, latents/ (the cache)
        split: train, test, ...: which part of photos that come in several
        k: principal components to find in each class; 0 fits the means alone, in one pass
        text: regression from the captions: ridge, or of lower rank: reduced-rank, cca
        resolution: side of the pictures in pixels, or [height, width]; left out: the model's own
        flip: fit mirrored pictures too; training then mirrors as well
        batch: pictures encoded at a time
        device: cuda, cpu, ...; left out: a GPU where there is one
        dtype: float32, float16 or bfloat16, for the encoding; statistics are taken in float64

    Returns:
        What fit.json says: pictures used, counts by class, refused files with reasons, fingerprints.

    Raises:
        ValueError: no usable photo, an unusable model, device, resolution, k or text, an `out` inside of `photos`.
    """
    given = dict(locals())
    from tqdm import tqdm

    from onbrand.api._inputs import open_model, say_summary, size_of
    from onbrand.core import Fitter, Prior, Provenance
    from onbrand.core.prior import FILE as PRIOR
    from onbrand.core.text import check_method
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.data.latents import iterate
    from onbrand.evaluation.likelihood import write_unseen
    from onbrand.models import pipeline
    from onbrand.models.fitting import draw_means, encode_photos, fit_text, ground_of_all, processes, starts_of
    from onbrand.models.pipeline import DTYPES, fingerprint

    check_method(text)
    if Path(out).resolve().is_relative_to(Path(photos).resolve()):
        raise ValueError(
            f"the brand's folder lies beside the photos, or its pictures would be read as photos; got {out}"
        )
    if Path(out).is_file():
        raise ValueError(f"the brand's folder is a folder; got {out}, a file")
    # bfloat16 has lost the digits that a VAE is known by: they are taken down before it is rounded
    out, pipe = Path(out), open_model(model, device, "float32" if dtype == "bfloat16" else dtype)
    known = fingerprint(pipe.vae)
    if dtype == "bfloat16":
        pipe.to(DTYPES[dtype])
    size = size_of(pipe, resolution)
    vae = pipe.vae.config
    factor = 2 ** (len(vae.block_out_channels) - 1)
    fitter = Fitter((vae.latent_channels, size[0] // factor, size[1] // factor), k)
    store, summary = encode_photos(pipe, photos, out / LATENTS, size, flip, batch, split)
    state = processes(pipe)
    if state and not state.is_main_process:
        return {}
    say_summary(summary)

    for mean, _, records in tqdm(iterate(store, summary.used, 512), "fit", unit=" batches"):
        fitter.update(pipeline.to_x0(pipe, mean), [record.class_name for record in records])
    gaussians = fitter.finish()
    told = fit_text(pipe, store, summary.used, gaussians, text)
    provenance = Provenance(
        vae=known,
        scaling_factor=float(vae.scaling_factor),
        shift_factor=float(vae.shift_factor or 0.0),
        resolution=size,
        model=str(model),
        flip=flip,
        ground=ground_of_all(summary.used),
    )
    prior = Prior(gaussians, provenance, told)
    prior.save(out / PRIOR)
    write_unseen(out, pipe, store, summary, prior)
    files = draw_means(pipe, prior, out / "means")

    counts = Counter(record.class_name for record in summary.used)
    classes: dict[str, dict[str, Any]] = {name: {"count": counts[name], "file": files[name]} for name in prior.classes}
    for name, part in told.items():
        spread = gaussians[name].variances
        classes[name]["r2"] = float((part.shrink * spread).sum() / spread.sum())
    for name in prior.classes:
        classes[name]["starts"] = starts_of(gaussians[name], name in told)
    result = {
        "model": str(model),
        "resolution": list(size),
        "flip": flip,
        "k": k,
        "used": len(summary.used),
        "classes": classes,
        "refused": [{"file": str(refused.file), "reason": refused.reason} for refused in summary.refused],
        "command": command(fit, given),
        "versions": versions(),
        "fingerprints": {"prior": prior.fingerprint, "VAE": provenance.vae},
    }
    write_json(out / "fit.json", result)
    for name, entry in classes.items():
        words = f", {100 * entry['r2']:.0f} % of their spread told by the captions" if "r2" in entry else ""
        print(f"{name}: {entry['count']} photos, {gaussians[name].k} components{words}")
        print(f"  starts: {', '.join(entry['starts'])}")
    print(f"wrote {out / PRIOR}, fit.json and means/")
    return result
