"""The verdict on each picture, and on all of them together, with statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from onbrand.core import Prior
from onbrand.evaluation import statistics
from onbrand.evaluation.joints import Stance
from onbrand.evaluation.likelihood import belongs, kind_values
from onbrand.evaluation.loading import Pictures, encode_x0
from onbrand.evaluation.reference import Reference, judge
from onbrand.evaluation.region import region_differences
from onbrand.evaluation.statistics import diversity, frechet, moments, redrawn
from onbrand.evaluation.text import AttributeClassifier, Scorer, all_right, open_judge, read

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

REDRAWN = 300
"""Bootstrap redraws of variety and distance."""
KEPT = 4.0
"""In 1/255: a garment that differs by no more from the one given counts as the same."""
RULES = {
    "ground": ("on the brand's ground", "As much ground within dE 3 of the brand's colour as in the photos."),
    "centring": ("centred", "The product's middle lies as near the frame's as in the photos."),
    "cropping": ("nothing cropped", "The product keeps the photos' margin to the frame."),
    "fill": ("fill the frame", "The product takes the share of the frame that it takes in the photos."),
    "light": (
        "lit as the photos",
        "Brightness and contrast of the product, and the darkest side of the set, lie in the photos' range.",
    ),
    "pose": ("in the brand's pose", "The silhouette lies on the mean silhouette as far as the photos' do."),
    "kind": (
        "right kind of picture",
        "The kind asked for is as likely, and as much the likeliest, as of the photos of that kind.",
    ),
    "text": ("show what was asked", "A reader finds in the picture what the prompt names: {attributes}."),
    "diversity": ("variety kept", "Variance over the photos', in the prior's components; 1 is all of it."),
    "frechet": ("distance from the photos", "Frechet distance in the prior's components (no FID); less is better."),
    "stray": ("of no kind", "Share less likely under every kind than 99.5 % of its photos; .005 is the photos' own."),
    "person": ("a person only where asked", "A pose net finds a person in a figure, and none in a product alone."),
    "pose_spread": (
        "spread of poses",
        "Distance of figures' joints from the photos' mean pose; 1 is the photos' own.",
    ),
    "region": ("garment kept", "Mean difference from the garment given, where it shows, in 1/255; 0 is that garment."),
    "region_near": ("garments within {kept}/255", "Share whose garment differs from the one given by that or less."),
    "clip": ("CLIP similarity", "Cosine of picture and prompt, by {name}; more is better."),
}
"""Title and rule, in a retailer's words, of what is judged; docs/properties.md has the formulas."""


def judge_pictures(
    made: Pictures,
    reference: Reference,
    prior: Prior | None,
    pipe: StableDiffusionPipeline | None,
    judges: Sequence[AttributeClassifier | Scorer] = (),
    stances: Mapping[str, Stance] | None = None,
    joints: Tensor | None = None,
) -> dict[str, Any]:
    """Every property of every picture, shares and measures with their intervals: what check.json says.

    judges: at most one reader of attributes and one scorer of similarity; stances, joints `(B, 6, 2, 2)`: how the
    photos' people stand, and where a pose net finds the pictures' joints.
    """
    x0 = encode_x0(pipe, made.pixels) if prior and pipe else None
    kinds = kind_values(prior, x0, made.classes) if prior and x0 is not None else None
    verdict = judge(reference, made.pixels, kinds, made.classes if prior else None)
    passed = {
        name: torch.where(verdict.judged[name], column.float(), torch.nan)
        for name, column in verdict.passed.items()
        if verdict.judged[name].any()
    }
    measures: dict[str, dict[str, Any]] = {}
    words: dict[str, str] = {}
    right: dict[str, Tensor] = {}
    for judge_of_text in judges:
        if hasattr(judge_of_text, "attributes"):
            reader = cast("AttributeClassifier", judge_of_text)
            right = read(reader, made.pixels, made.prompts, made.attributes)
            passed["text"] = all_right(right)
            words["attributes"] = ", ".join(reader.attributes)
        else:
            scorer = cast("Scorer", judge_of_text)
            words["name"] = scorer.name
            measures["clip"] = _measure("clip", statistics.mean(scorer(made.pixels, made.prompts)), words)
    if prior and x0 is not None:
        measures |= spread_of(prior, x0, made.classes, words)
        stray = ~belongs(reference.lines, prior, x0)
        measures["stray"] = _measure("stray", statistics.mean(stray.float()), words)
    if stances and joints is not None:
        measures |= poses_of(stances, joints, made.classes, words)
    apart = region_differences(made.pixels, made.conditioning)
    if apart.isfinite().any():
        measures |= kept_of(apart)
    table = torch.stack(list(passed.values()), 1).nan_to_num(1.0) > 0  # what a prompt does not ask for is no failure
    failed = [[name for name, good in zip(passed, row, strict=True) if not good] for row in table.tolist()]
    entries = []
    columns = {**verdict.values, "region": apart}
    for i, file in enumerate(made.files):
        numbers = {name: round(float(column[i]), 4) for name, column in columns.items() if column[i].isfinite()}
        entries.append({"file": file, "failed": failed[i], "values": numbers})
    properties = {name: _title(name, words) | _share(column) for name, column in passed.items()}
    return {
        "count": len(made.files),
        "learnt": reference.count[0],
        "all": _share(table.all(1).float()),
        "properties": {name: entry for name, entry in properties.items() if entry["of"]},
        "measures": measures,
        "attributes": {name: _share(column) for name, column in right.items() if column.isfinite().any()},
        "held_out": dict(reference.held_out),
        "told": {name: float(column.nanmean()) for name, column in verdict.values.items() if name not in (kinds or {})},
        "ground": list(reference.ground),
        "pictures": entries,
    }


def open_judges(*folders: str | Path | None) -> list[AttributeClassifier | Scorer]:
    """Who judges the text: of each folder a reader or a CLIPModel; ValueError for neither, and for two of one kind."""
    judges = [open_judge(folder) for folder in folders if folder is not None]
    if len({hasattr(one, "attributes") for one in judges}) < len(judges):
        raise ValueError(f"text is judged by one reader and one CLIPModel at most; got {', '.join(map(str, folders))}")
    return judges


def spread_of(prior: Prior, x0: Tensor, classes: Sequence[str], words: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Variance ratio and Frechet distance of x0 `(B, C, h, w)` in their classes' components, weighted by counts."""
    ratios, distances, weights, by_class = [], [], [], {}
    for name in dict.fromkeys(classes):
        rows = [i for i, other in enumerate(classes) if other == name]
        gaussian = prior.gaussians[name]
        if len(rows) < 2 or not gaussian.k:
            continue
        own, brand = gaussian.coordinates(x0[rows]).double().cpu(), gaussian.variances.double().cpu()
        centre = torch.zeros_like(brand)
        drawn = statistics.redraw(len(rows), REDRAWN, 0)
        found = diversity(own, brand)
        by_class[name] = found.components.tolist()
        ratios.append(torch.cat([torch.tensor([found.total]), redrawn(own, brand, drawn)]))
        every = [own, *(own[row] for row in drawn)]
        distances.append(torch.tensor([frechet(*moments(one), centre, brand.diag()) for one in every]))
        weights.append(len(rows))
    if not weights:
        return {}
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    measures = {}
    for name, columns in (("diversity", ratios), ("frechet", distances)):
        values = (torch.stack([column.double() for column in columns], 1) * share).sum(1)
        # redrawn pictures repeat, which moves both numbers: the redraws tell the spread, the pictures the value
        redraws = values[1:] - values[1:].mean() + values[0]
        measures[name] = _measure(name, statistics.statistic(redraws, float(values[0]), sum(weights)), words)
    measures["diversity"]["components"] = by_class
    return measures


def poses_of(
    stances: Mapping[str, Stance], joints: Tensor, classes: Sequence[str], words: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Share of joints `(B, 6, 2, 2)` that are there where, and only where, the class has a stance; and how far figures
    lie from it: root mean square distance over the photos' own, 1 is theirs."""
    asked = torch.tensor([name in stances for name in classes])
    found = joints.isfinite().flatten(1).all(1)
    off = torch.full((len(joints),), torch.nan)
    for i, name in enumerate(classes):
        if name in stances:
            off[i] = (stances[name].distances(joints[i : i + 1]) / stances[name].spread).square()[0]
    mean = statistics.mean(off)
    spread = statistics.Interval(math.sqrt(mean.value), math.sqrt(mean.low), math.sqrt(mean.high), mean.n)
    told = {"person": _measure("person", statistics.mean((asked == found).float()), words)}
    return told | ({"pose_spread": _measure("pose_spread", spread, words)} if spread.n else {})


def kept_of(apart: Tensor) -> dict[str, dict[str, Any]]:
    """Mean and median of differences `(B,)` from the garments given, in 1/255, and the share up to KEPT; nan: none."""
    near = torch.where(apart.isnan(), torch.nan, (apart <= KEPT + 1e-3).float())
    region = _measure("region", statistics.mean(apart), {}) | {"median": float(apart.nanmedian())}
    return {"region": region, "region_near": _measure("region_near", statistics.mean(near), {"kept": f"{KEPT:g}"})}


def _share(column: Tensor) -> dict[str, Any]:
    found = statistics.mean(column)
    return {"share": found.value, "low": found.low, "high": found.high, "of": found.n}


def _title(name: str, words: Mapping[str, str]) -> dict[str, str]:
    title, rule = RULES[name]
    return {"title": title.format(**words), "rule": rule.format(**words) if "{" in rule else rule}


def _measure(name: str, found: statistics.Interval, words: Mapping[str, str]) -> dict[str, Any]:
    return _title(name, words) | {"value": found.value, "low": found.low, "high": found.high, "of": found.n}
