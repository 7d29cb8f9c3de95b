"""What a baseline needs beside a training: its noise schedule or prior, the background replaced, the autoencoder alone.

The signal leak by element, or of low frequencies, is written from the published description (Everaert et al., WACV
2024, "Exploiting the Signal-Leak Bias in Diffusion Models"); x_start drawn from it with all components is that start.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from onbrand.api._output import LOCK
from onbrand.comparison.methods import SCHEDULES
from onbrand.comparison.methods import Method as Compared
from onbrand.core.gaussian import Gaussian
from onbrand.errors import OnbrandError
from onbrand.io import whole_folder, write_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core import Prior
    from onbrand.core.text import Method
    from onbrand.data.latents import Store
    from onbrand.data.records import Record


def signal_leak(x0: Tensor) -> Gaussian:
    """Each element of x0 `(B, C, H, W)` by itself: its mean and variance, K = C*H*W unit components.

    OnbrandError for fewer than two images.
    """
    rows = _rows(x0)
    variances, order = rows.var(0).sort(descending=True)
    unit = torch.zeros(len(order), len(order))
    unit[torch.arange(len(order)), order] = 1
    return Gaussian(
        rows.mean(0).float().reshape(x0.shape[1:]), unit, variances.float(), float(variances.sum()), len(x0)
    )


def signal_leak_of_low_frequencies(x0: Tensor, n: int = 3) -> Gaussian:
    """The n x n lowest DCT coefficients of every channel of x0 `(B, C, H, W)`, jointly; all others are 0 in x_start.

    K = min(C n^2, B - 1) components: the basis turned into the eigenvectors of the coefficients' covariance.
    OnbrandError for fewer than two images, and n beyond the sides.
    """
    rows, (c, h, w) = _rows(x0), x0.shape[1:]
    if not 1 <= n <= min(h, w):
        raise OnbrandError(
            "comparison", f"n lowest frequencies of sides {h} and {w}: got n = {n}; take 1 to {min(h, w)}"
        )
    one = torch.einsum("ay,bx->abyx", dct_basis(h)[:n], dct_basis(w)[:n]).reshape(n * n, h * w)
    basis = torch.kron(torch.eye(c, dtype=torch.float64), one)
    coefficients = rows @ basis.T
    mean = coefficients.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov(coefficients.T).reshape(len(basis), len(basis)))
    k = min(len(basis), len(x0) - 1)
    variances, vectors = variances.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]
    placed = (mean @ basis).reshape(c, h, w)
    return Gaussian(placed.float(), (vectors.T @ basis).float(), variances.float(), float(variances.sum()), len(x0))


def dct_basis(n: int) -> Tensor:
    """Orthonormal DCT-II `(n, n)`, float64: row k is frequency k (scipy.fft.dct with norm="ortho")."""
    places, k = torch.arange(n, dtype=torch.float64) + 0.5, torch.arange(n, dtype=torch.float64)[:, None]
    basis = (math.pi / n * k * places).cos() * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _rows(x0: Tensor) -> Tensor:
    if x0.ndim != 4 or len(x0) < 2:
        raise OnbrandError(
            "comparison", f"a leak is fitted on x0 (B, C, H, W) of two images or more: got {tuple(x0.shape)}"
        )
    return x0.detach().cpu().double().flatten(1)


def prepare(
    pipe: DiffusionPipeline, methods: list[Compared], photos: str | Path, model: str | Path, out: Path,
    prior: str | Path | None, split: str | None, device: str | None, config: str | Path | None = None,
) -> tuple[dict[str, Path], Prior, dict[str, Path]]:  # fmt: skip
    """The brand's prior, and the priors and models that baselines need: by name, made if they are not there yet."""
    from onbrand.api._fit import fit
    from onbrand.api._inputs import open_model, open_prior
    from onbrand.core.prior import FILE as PRIOR
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.models.pipeline import fingerprint

    brand = Path(prior) if prior else out / "brand"
    if prior and not brand.is_dir():
        raise OnbrandError(
            "comparison", f"a comparison takes the brand's folder, as `fit` writes it, with its latents; got {prior}"
        )
    if not prior and not (brand / "prior.safetensors").exists():
        fit(photos, model, brand, split=split, device=device, model_config=config)
    fitted = open_prior(brand)
    assert fitted is not None
    if len(fitted.all) > 1:
        raise OnbrandError(
            "comparison", f"a comparison is of one size; {brand} has {len(fitted.all)}: fit without enable_bucket"
        )
    priors, models = {"": brand}, {}
    for name in dict.fromkeys(name for m in methods for name in (m.prior, m.training.prior) if name):
        priors[name] = out / "priors" / f"{name}-{fitted.fingerprint[:12]}"
        if not priors[name].exists():
            with whole_folder(priors[name]) as draft:
                other_prior(pipe, name, fitted, photos, brand, split).save(draft / PRIOR)
                (draft / LATENTS).symlink_to((brand / LATENTS).resolve())
    for name in dict.fromkeys(method.training.schedule for method in methods if method.training.schedule):
        models[name] = out / "models" / f"{name}-{fingerprint(pipe.unet)[:12]}"
        if not (models[name] / "model_index.json").exists():
            baseline_model(open_model(model, device, config=config), name, math.prod(fitted.shape), models[name])
    return priors, fitted, models


def baseline_model(pipe: DiffusionPipeline, name: str, d: int, folder: Path) -> Path:
    """The model with a baseline's noise schedule (SCHEDULES) for latents of d numbers, saved in `folder`."""
    from onbrand.models import pipeline
    from onbrand.models.scheduler import with_prediction, with_terminal, with_zero_snr

    assert name in SCHEDULES
    if name == "small-alpha":
        pipe.scheduler = with_terminal(pipe.scheduler, 1 / d)
    else:
        base = with_zero_snr(pipe.scheduler) if name == "zero-snr" else pipe.scheduler
        pipe.scheduler = with_prediction(base, "v_prediction", "trailing")
    with whole_folder(folder) as draft:
        pipeline.save(pipe, draft)
    return folder


def other_prior(
    pipe: DiffusionPipeline, name: str, prior: Prior, photos: str | Path, brand: Path, split: str | None
) -> Prior:
    """The brand's prior with another regression from text, or a baseline's, of the same latents."""
    from onbrand.core import Prior
    from onbrand.data.latents import FOLDER as LATENTS
    from onbrand.data.latents import iterate
    from onbrand.data.records import open_folder
    from onbrand.models.fitting import encode_photos, fit_text
    from onbrand.models.pipeline import text_fingerprint, to_x0

    provenance = prior.provenance
    if name == "zero":
        zeros = {one: replace(part, mean=torch.zeros_like(part.mean)) for one, part in prior.gaussians.items()}
        return Prior(zeros, provenance)
    folder = open_folder(photos, split)
    store, summary = encode_photos(pipe, folder, brand / LATENTS, provenance.resolution, provenance.flip)
    if name.startswith("few"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that they are few is the question here
            return few_prior(pipe, prior, store, few_of(summary.used, int(name.removeprefix("few"))))
    if not name.startswith("leak"):
        text = fit_text(pipe, store, summary.used, prior.gaussians, cast("Method", name))
        return Prior(prior.gaussians, replace(provenance, text_encoder=text_fingerprint(pipe)), text)
    leak_of = signal_leak if name == "leak" else signal_leak_of_low_frequencies
    parts: dict[str, list[torch.Tensor]] = {one: [] for one in prior.classes}
    for mean, records in iterate(store, summary.used, 512):
        x0 = to_x0(pipe, mean)
        for i, record in enumerate(records):
            parts[record.class_name].append(x0[i])
    return Prior({one: leak_of(torch.stack(rows)) for one, rows in parts.items()}, provenance)


def few_of(records: Sequence[Record], count: int) -> list[Record]:
    """`count` photos of each class, evenly spread; OnbrandError if a class has fewer."""
    chosen: list[Record] = []
    for name in dict.fromkeys(record.class_name for record in records):
        own = [record for record in records if record.class_name == name]
        if len(own) < count:
            raise OnbrandError("comparison", f"a prior of {count} photos a class needs as many; {name} has {len(own)}")
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen


def few_prior(pipe: DiffusionPipeline, prior: Prior, store: Store, records: Sequence[Record]) -> Prior:
    """What `fit` makes of the records, with as many components as the brand's prior."""
    from onbrand.core import Fitter, Prior
    from onbrand.models.fitting import fit_gaussians, fit_text
    from onbrand.models.pipeline import text_fingerprint

    gaussians = fit_gaussians(pipe, Fitter(prior.shape, prior.k), store, store.look_up(records))
    provenance = replace(prior.provenance, text_encoder=text_fingerprint(pipe))
    return Prior(gaussians, provenance, fit_text(pipe, store, records, gaussians))


def paste(raw: Path, out: Path, size: tuple[int, int]) -> None:
    """A folder's images with their background replaced by white, as studios do it; the manifest is theirs."""
    from onbrand.evaluation.loading import open_images
    from onbrand.evaluation.segmentation import pasted

    images = open_images(raw, size, None)
    white = (pasted(images.pixels) * 255 + 0.5).byte().permute(0, 2, 3, 1).numpy()
    with whole_folder(out) as draft:
        for file, pixels in zip(images.files, white, strict=True):
            (draft / file).parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(draft / file)
        shutil.copy2(raw / "manifest.jsonl", draft / "manifest.jsonl")


def through(pipe: DiffusionPipeline, real: Path, out: Path, size: tuple[int, int]) -> None:
    """A folder's real images as the model's autoencoder returns them: the most that a start or training can reach."""
    from onbrand.data.images import to_image
    from onbrand.evaluation.loading import decode_x0, encode_x0, open_images

    images = open_images(real, size, None)
    returned = decode_x0(pipe, encode_x0(pipe, images.pixels))
    with whole_folder(out) as draft:
        shutil.copytree(real, draft, ignore=shutil.ignore_patterns("check.*", ".checked-*", LOCK), dirs_exist_ok=True)
        for file, pixels in zip(images.files, returned, strict=True):
            to_image(pixels * 2 - 1).save(draft / file, "PNG")  # whatever its name says: no loss


def default_requests(photos: str | Path, split: str | None, out: Path, count: int = 24) -> Path:
    """Captions of the photos, evenly spread over them, each under a seed of its own, as a file of requests."""
    from onbrand.data.records import read_folder

    records = [record for record in read_folder(photos, split)[0] if record.text]
    if not records:
        raise OnbrandError(
            "comparison", f"a comparison needs prompts: {photos} has no captions; give prompts, a file of requests"
        )
    chosen: list[Any] = records[:: max(1, len(records) // count)][:count]
    lines: list[dict[str, Any]] = [{"prompt": r.text, "class": r.class_name, "seed": i} for i, r in enumerate(chosen)]
    for line, record in zip(lines, chosen, strict=True):
        line |= {"conditioning": str(record.conditioning.resolve())} if record.conditioning else {}
    write_text(out, "".join(json.dumps(line) + "\n" for line in lines))
    return out
