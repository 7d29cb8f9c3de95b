"""The kind of picture: the class whose Gaussian gives the latent the highest likelihood, and whether any does."""

from __future__ import annotations

import json
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
from onbrand.io import write_json
from onbrand.models.pipeline import to_x0

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

LINE = 0.005
"""A picture less likely under a class than this share of the class's photos does not belong to it (99.5 % line)."""
FOLDS = 10
"""Parts that a class's photos are told by, each by a prior fitted on the others."""
ALL = ""
"""Names what was learned from all photos together, where kinds of picture are not told apart."""


def kind_of(likelihoods: Tensor, classes: Tensor, dimensions: int) -> dict[str, Tensor]:
    """Of the kind of picture, from log-likelihoods `(B, n)` of each class (Prior.classify) and the asked class `(B,)`.

    In nats a dimension of x0: kind_lead, how much likelier the asked class is than the best other one (inf where there
    is no other); kind_likelihood, log-likelihood under the asked class.
    """
    asked = likelihoods.gather(1, classes[:, None])[:, 0]
    others = likelihoods.scatter(1, classes[:, None], -torch.inf).amax(1)
    return {"kind_lead": (asked - others) / dimensions, "kind_likelihood": asked / dimensions}


def kind_values(prior: Prior, x0: Tensor, classes: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The numbers of the kind of picture: x0 `(B, C, h, w)` under the prior; classes asked for, or the likeliest.

    ValueError for an unknown class or another number of classes.
    """
    likeliest, likelihoods = prior.classify(x0)
    names = likeliest if classes is None else list(classes)
    if len(names) != len(x0) or not set(names) <= set(prior.classes):
        raise ValueError(f"each picture has one class of {', '.join(prior.classes)}: got {sorted(set(names))}")
    asked = torch.tensor([prior.classes.index(name) for name in names], dtype=torch.int64)
    return kind_of(likelihoods.cpu(), asked, x0[0].numel())


def unseen_values(prior: Prior, x0: Tensor, name: str, mirrored: Tensor | None = None) -> dict[str, Tensor]:
    """`kind_values` of all photos that a class was fitted on, each by a prior that has not seen it; nan where none can.
    Also kind_variety: |coordinates|^2 / the sum of variances, whose mean is the variety that new photos would have.

    A prior finds the photos that it was fitted on likelier than new ones, the fewer they are the more so (of 100
    garments by 0.3 nats a dimension, of 800 by 0.03), and ranges read off them would fail the brand's own next photo.
    So the class is fitted anew without each of FOLDS parts of them (cross-fitting); other classes are left as they are.

    x0, mirrored: `(B, C, h, w)`, B > 2; mirrored: the same photos mirrored, where those were fitted too.
    """
    count = len(x0)
    fold = torch.randperm(count, generator=torch.Generator().manual_seed(0)) % FOLDS
    found = {number: torch.full((count,), torch.nan) for number in ("kind_lead", "kind_likelihood", "kind_variety")}
    for part in fold.unique():
        rest = fold != part
        rows = x0[rest] if mirrored is None else torch.cat([x0[rest], mirrored[rest]])
        without = fit_rows(rows, prior.gaussians[name].k)
        if without.total > 0:
            others = Prior({**prior.gaussians, name: without}, prior.provenance)
            values = kind_values(others, x0[~rest], [name] * int((~rest).sum()))
            values["kind_variety"] = without.coordinates(x0[~rest]).square().sum(1) / without.variances.sum()
            for number, column in values.items():
                found[number][~rest] = column
    return found


def belongs(lines: Mapping[str, float], prior: Prior, x0: Tensor) -> Tensor:
    """`(B,)` bool: x0 `(B, C, h, w)` is at least as likely under some class as that class's line (Reference.lines)."""
    likelihoods = prior.classify(x0)[1].cpu() / x0[0].numel()
    least = torch.tensor([lines.get(name, lines.get(ALL, -math.inf)) for name in prior.classes])
    return (likelihoods >= least).any(1)


FILE = "unseen.json"
ENOUGH = 500
"""Photos of a class from which on the prior finds new ones as likely as those it has seen (docs/properties.md)."""


def write_unseen(brand: Path, pipe: StableDiffusionPipeline, store: Store, summary: Summary, prior: Prior) -> None:
    """Write brand/unseen.json: `unseen_values` of each photo of the classes with few, by the photo's key.

    A class of one or two photos, or without spread, has none.
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
            told = {number: float(column[i]) for number, column in values.items() if column[i].isfinite()}
            if told:  # kind_lead is infinite where there is one class
                photos[key] = told
    write_json(brand / FILE, {"prior": prior.fingerprint, "photos": photos})


def kinds_of_photos(
    prior: Prior, x0: Tensor, classes: Sequence[str], keys: Sequence[str], brand: Path | None
) -> dict[str, Tensor]:
    """`kind_values` of the brand's photos, of those that `fit` told of as if the prior had not seen them.

    keys: the photos' keys in the store. Where a class has few and nothing is told of them, a warning.
    """
    values = kind_values(prior, x0, classes)
    photos = _read(brand, prior)
    fewest = ENOUGH * (1 + prior.provenance.flip)
    few = {name for name in classes if prior.gaussians[name].count < fewest}
    if not few:
        return values
    if photos is None:
        warnings.warn(
            f"the kind of picture is learnt from photos that the prior may have seen, fewer than {ENOUGH} of "
            f"{', '.join(sorted(few))}: new pictures will fail it too often; give as prior the folder that `onbrand "
            "fit` wrote (one of an older version: fit again)",
            stacklevel=2,
        )
        return values
    # of photos that a Gaussian was fitted on the variety is 1 on average, with enough of them that of new ones too
    values["kind_variety"] = torch.tensor([torch.nan if name in few else 1.0 for name in classes])
    for i, key in enumerate(keys):
        for number, value in photos.get(key, {}).items():
            values[number][i] = value
    return values


def _read(brand: Path | None, prior: Prior) -> dict[str, dict[str, float]] | None:
    file = brand / FILE if brand else None
    if file is None or not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    return told["photos"] if told["prior"] == prior.fingerprint else None
