"""The class of image: how likely a latent is under each class's Gaussian, and whether it is likely under any."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.core.fit import fit_rows
from onbrand.core.prior import Prior
from onbrand.data.latents import Store, Summary
from onbrand.errors import OnbrandError
from onbrand.io import read_json, write_json
from onbrand.models.pipeline import to_x0

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LINE = 0.005
"""An image does not belong to a class if it is less likely than all but this share of the class's photos."""
FOLDS = 10
"""Parts of a class's photos in cross-fitting: each is measured by a prior fitted on the others."""
ALL = ""
"""Names the ranges of all photos together, whatever their class."""


def class_numbers(likelihoods: Tensor, classes: Tensor, dimensions: int) -> dict[str, Tensor]:
    """Compute the numbers of the property "class".

    Args:
        likelihoods: `(B, n)` log-likelihood under each class, in nats (Prior.classify).
        classes: `(B,)` int64 index of the requested class.
        dimensions: of x0.

    Returns:
        `(B,)` each, in nats a dimension: class_likelihood, the log-likelihood under the requested class; class_lead,
        how much that is above the likeliest other class (inf if there is no other).
    """
    own = likelihoods.gather(1, classes[:, None])[:, 0]
    others = likelihoods.scatter(1, classes[:, None], -torch.inf).amax(1)
    return {"class_lead": (own - others) / dimensions, "class_likelihood": own / dimensions}


def class_values(prior: Prior, x0: Tensor, classes: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Compute `class_numbers` of latents.

    Args:
        prior: one Gaussian for each class.
        x0: `(B, C, h, w)`.
        classes: the requested class of each; the default is the likeliest.

    Raises:
        OnbrandError: an unknown class, or another number of classes than of latents.
    """
    likeliest, likelihoods = prior.classify(x0)
    names = likeliest if classes is None else list(classes)
    if len(names) != len(x0) or not set(names) <= set(prior.classes):
        raise OnbrandError("value", f"each image has one class of {', '.join(prior.classes)}: got {sorted(set(names))}")
    indices = torch.tensor([prior.classes.index(name) for name in names], dtype=torch.int64)
    return class_numbers(likelihoods.cpu(), indices, x0[0].numel())


def unseen_values(prior: Prior, x0: Tensor, name: str, mirrored: Tensor | None = None) -> dict[str, Tensor]:
    """Compute `class_values` of the photos that a class was fitted on, cross-fitted: by priors that have not seen them.

    A prior finds the photos that it was fitted on likelier than new ones, by 0.3 nats a dimension for 100 garments and
    0.03 for 800. Ranges read off them would fail the brand's next photo. So the class is fitted anew without each of
    FOLDS parts of its photos, which that prior then measures; the other classes stay as they are.

    Args:
        prior: the prior fitted on all.
        x0: `(B, C, h, w)`, B > 2, the photos of the class.
        name: the class.
        mirrored: `(B, C, h, w)` the same photos mirrored, if those were fitted too.

    Returns:
        class_lead, class_likelihood and class_diversity `(B,)`; nan if the other photos have no spread. class_diversity
        is |coordinates|^2 over the sum of variances: its mean is the diversity that new photos would have.
    """
    count = len(x0)
    fold = torch.randperm(count, generator=torch.Generator().manual_seed(0)) % FOLDS
    columns = {
        number: torch.full((count,), torch.nan) for number in ("class_lead", "class_likelihood", "class_diversity")
    }
    for part in torch.unique(fold):
        rest = fold != part
        rows = x0[rest] if mirrored is None else torch.cat([x0[rest], mirrored[rest]])
        without = fit_rows(rows, prior.gaussians[name].k)
        if without.total > 0:
            others = Prior({**prior.gaussians, name: without}, prior.provenance)
            values = class_values(others, x0[~rest], [name] * int((~rest).sum()))
            values["class_diversity"] = without.coordinates(x0[~rest]).square().sum(1) / without.variances.sum()
            for number, column in values.items():
                columns[number][~rest] = column
    return columns


def belongs(lines: Mapping[str, float], prior: Prior, x0: Tensor) -> Tensor:
    """`(B,)` bool: whether x0 `(B, C, h, w)` reaches some class's line (Reference.lines), in nats a dimension."""
    likelihoods = prior.classify(x0)[1].cpu() / x0[0].numel()
    least = torch.tensor([lines.get(name, lines.get(ALL, -math.inf)) for name in prior.classes])
    return (likelihoods >= least).any(1)


FILE = "unseen.json"
ENOUGH = 500
"""With this many photos of a class, the prior finds new ones as likely as those that it has seen
(docs/concepts/properties.md)."""


def write_unseen(brand: Path, pipe: DiffusionPipeline, store: Store, summary: Summary, prior: Prior) -> None:
    """Write brand/unseen.json: `unseen_values` of each photo of the classes with fewer than ENOUGH, by the photo's key.

    Args:
        brand: the folder of the prior.
        pipe: the model that encoded the photos.
        store: their latents.
        summary: their records and keys.
        prior: fitted on them. A class of one or two photos, or without spread, is left out.
    """
    counts = Counter(record.class_name for record in summary.used)
    photos: dict[str, dict[str, float]] = {}
    for name in prior.classes:
        if not 2 < counts[name] < ENOUGH or prior.gaussians[name].total == 0:
            continue
        keys = [key for key, record in zip(summary.keys, summary.used, strict=True) if record.class_name == name]
        x0 = to_x0(pipe, store.get(keys)[0]).cpu()
        mirrored = to_x0(pipe, store.get(keys, [True] * len(keys))[0]).cpu() if store.key.flip else None
        values = unseen_values(prior, x0, name, mirrored)
        for i, key in enumerate(keys):
            numbers = {number: float(column[i]) for number, column in values.items() if column[i].isfinite()}
            if numbers:  # class_lead is infinite if there is one class
                photos[key] = numbers
    write_json(brand / FILE, {"prior": prior.fingerprint, "photos": photos}, sealed=True)


def class_values_of_photos(
    prior: Prior, x0: Tensor, classes: Sequence[str], keys: Sequence[str], brand: Path | None
) -> dict[str, Tensor]:
    """Compute `class_values` of the brand's photos, cross-fitted if brand/unseen.json has their numbers.

    Warns if a class has fewer than ENOUGH photos and the file is missing or of another prior.

    Args:
        prior: one Gaussian for each class.
        x0: `(B, C, h, w)`, the photos.
        classes: the class of each.
        keys: the key of each in the store.
        brand: the folder that `fit` wrote; None if the prior is a file alone.

    Returns:
        class_lead, class_likelihood and, if a class has few photos and the file is there, class_diversity: `(B,)`.
    """
    values = class_values(prior, x0, classes)
    photos = _read(brand, prior)
    fewest = ENOUGH * (1 + prior.provenance.flip)
    few = {name for name in classes if prior.gaussians[name].count < fewest}
    if not few:
        return values
    if photos is None:
        warnings.warn(
            f"the ranges of the class are learned from photos that the prior may have seen, fewer than {ENOUGH} of "
            f"{', '.join(sorted(few))}: new images will fail it too often; give as prior the folder that `onbrand "
            "fit` wrote (if an older version wrote it, fit again)",
            stacklevel=2,
        )
        return values
    # the photos that a Gaussian was fitted on have diversity 1 on average; if they are many, new ones have it too
    values["class_diversity"] = torch.tensor([torch.nan if name in few else 1.0 for name in classes])
    for i, key in enumerate(keys):
        for number, value in photos.get(key, {}).items():
            values[number][i] = value
    return values


def _read(brand: Path | None, prior: Prior) -> dict[str, dict[str, float]] | None:
    file = brand / FILE if brand else None
    if file is None or not file.is_file():
        return None
    content = read_json(file)
    return content["photos"] if content["prior"] == prior.fingerprint else None
