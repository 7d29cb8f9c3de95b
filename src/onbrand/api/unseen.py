"""What the prior would make of its own photos had it not seen them: written by `fit`, read by what learns ranges."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.api.again import write_json
from onbrand.core import Prior
from onbrand.data.latents import Store, Summary
from onbrand.measure.kind import kind_values, unseen_values
from onbrand.models.codec import to_x0

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

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
