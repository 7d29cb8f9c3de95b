"""The verdict on each image, and on all of them together, with statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from onbrand.core import Prior
from onbrand.core.prior import name_of
from onbrand.errors import OnbrandError
from onbrand.evaluation import statistics
from onbrand.evaluation.joints import Stance
from onbrand.evaluation.likelihood import belongs, class_values
from onbrand.evaluation.loading import Images, encode_x0, places_of
from onbrand.evaluation.properties import OPENS, PROPERTIES, WORDS
from onbrand.evaluation.reference import Reference, judge
from onbrand.evaluation.region import region_differences
from onbrand.evaluation.statistics import diversity, frechet, moments, redrawn
from onbrand.evaluation.text import AttributeClassifier, all_right, open_judge, read

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.models.clip import Clip

REDRAWS = 300
"""Bootstrap redraws of diversity and distance."""
KEPT = 4.0
"""A garment that differs by no more than this, in 1/255, from the one in the control image counts as the same."""
JUDGED_APART = {number for one in PROPERTIES if not one.numbers_of for number in one.numbers} | {"region"}
"""Numbers of the likelihood and of the region: the means of all others say what the images are like."""


def judge_images(
    images: Images,
    references: Mapping[tuple[int, int], Reference],
    prior: Prior | None,
    pipe: DiffusionPipeline | None,
    judges: Sequence[AttributeClassifier | Clip] = (),
    stances: Mapping[str, Stance] | None = None,
    joints: Tensor | None = None,
) -> dict[str, Any]:
    """Judge every property of every image by the photos of its size, and measure all images together.

    Args:
        images: the images, opened.
        references: the ranges of the brand's photos, of each size that `loading.places_of` gives.
        prior: the prior for class, diversity and distance; they are left out if it or `pipe` is None.
        pipe: the model whose autoencoder encodes the images.
        judges: at most one attribute classifier and one CLIP model.
        stances: how the people in the photos stand, by class of image.
        joints: `(B, 6, 2, 2)` joints that a pose net finds in the images, in pixels; nan: no person.

    Returns:
        What check.json says: rates and measures with their intervals, and each image's numbers and failures. Rates of
        the held-out photos are means over the sizes, weighted by their photos.

    Raises:
        OnbrandError: an image of a class that the prior or the reference does not know, or a label that the attribute
            classifier does not know.
    """
    words: dict[str, str] = {}
    passes, values, attributes, latents = judge_each(images, references, prior, pipe, judges, words)
    measures: dict[str, dict[str, Any]] = {}
    if "clip" in values:
        measures["clip"] = _measure("clip", statistics.mean(values.pop("clip")), words)
    if "out_of_distribution" in values:
        measures |= spread_of(latents, words)
        strangeness = values.pop("out_of_distribution")
        measures["out_of_distribution"] = _measure("out_of_distribution", statistics.mean(strangeness), words)
    if stances and joints is not None:
        measures |= poses_of(stances, joints, images.classes, words)
    if values["region"].isfinite().any():
        measures |= garments_of(values["region"])
    failures = failures_of(passes)
    entries = []
    for i, file in enumerate(images.files):
        numbers = {name: round(float(column[i]), 4) for name, column in values.items() if column[i].isfinite()}
        entries.append({"file": file, "failed": failures[i], "values": numbers})
    properties = {name: _words(name, words) | _rate(column) for name, column in passes.items()}
    passed = torch.tensor([float(not names) for names in failures] + [0.0] * len(images.refused))
    refused = [{"file": str(error.file), "reason": error.reason} for error in images.refused.values()]
    for place, error in images.refused.items():
        entries.insert(place, {"file": str(error.file), "failed": ["opens"], "values": {}})
    if refused:
        opened = torch.cat([torch.ones(len(images.files)), torch.zeros(len(refused))])
        properties = {"opens": {"title": OPENS[0], "rule": OPENS[1], **_rate(opened)}, **properties}
    return {
        "count": images.count,
        "n_reference": sum(reference.count[0] for reference in references.values()),
        "all": _rate(passed),
        "properties": {name: entry for name, entry in properties.items() if entry["n"]},
        "measures": measures,
        "attributes": {name: _rate(column) for name, column in attributes.items() if column.isfinite().any()},
        "held_out": _held_out(list(references.values())),
        "descriptive": {n: float(column.nanmean()) for n, column in values.items() if n not in JUDGED_APART},
        "background": list(next(iter(references.values())).background),
        "images": entries,
        **({"refused": refused} if refused else {}),
    }


class Judged(NamedTuple):
    """What is known of images, a column `(B,)` each."""

    passes: dict[str, Tensor]
    """1 or 0; nan: not judged."""
    values: dict[str, Tensor]
    attributes: dict[str, Tensor]
    latents: list[tuple[Prior, Tensor, Sequence[str]]]
    """As `spread_of` takes them."""


def judge_each(
    images: Images,
    references: Mapping[tuple[int, int], Reference],
    prior: Prior | None,
    pipe: DiffusionPipeline | None,
    judges: Sequence[AttributeClassifier | Clip],
    words: dict[str, str],
) -> Judged:
    """Judge each image by itself; arguments as `judge_images` has them. words: given what fills the rules' braces."""
    places = places_of(images, prior, next(iter(references)))
    parts = [
        _judge(images.part(rows, size), references[size], prior.at(size) if prior else None, pipe, judges, words)
        for size, rows in places.items()
    ]
    rows = list(places.values())
    passes, values = _joined([part.passes for part in parts], rows), _joined([part.values for part in parts], rows)
    attributes = _joined([part.attributes for part in parts], rows)
    return Judged(passes, values, attributes, [cell for part in parts for cell in part.latents])


def failures_of(passes: Mapping[str, Tensor]) -> list[list[str]]:
    """The properties that each image fails; what a prompt does not ask for (nan) is no failure."""
    table = torch.stack(list(passes.values()), 1).nan_to_num(1.0) > 0
    return [[name for name, good in zip(passes, row, strict=True) if not good] for row in table.tolist()]


def _judge(
    images: Images,
    reference: Reference,
    prior: Prior | None,
    pipe: DiffusionPipeline | None,
    judges: Sequence[AttributeClassifier | Clip],
    words: dict[str, str],
) -> Judged:
    """`judge_each` of images of one size."""
    x0 = encode_x0(pipe, images.pixels) if prior and pipe else None
    likelihoods = class_values(prior, x0, images.classes) if prior and x0 is not None else None
    verdict = judge(reference, images.pixels, likelihoods, images.classes if prior else None)
    passes = {
        name: torch.where(verdict.judged[name], column.float(), torch.nan)
        for name, column in verdict.passed.items()
        if verdict.judged[name].any()
    }
    values = verdict.values | {"region": region_differences(images.pixels, images.conditioning)}
    attributes: dict[str, Tensor] = {}
    for judge_of_text in judges:
        if isinstance(judge_of_text, AttributeClassifier):
            attributes = read(judge_of_text, images.pixels, images.prompts, images.attributes)
            passes["text"] = all_right(attributes)
            words["attributes"] = ", ".join(judge_of_text.attributes)
        else:
            words["name"] = judge_of_text.name
            values["clip"] = judge_of_text(images.pixels, images.prompts)
    if not prior or x0 is None:
        return Judged(passes, values, attributes, [])
    values["out_of_distribution"] = (~belongs(reference.lines, prior, x0)).float()
    return Judged(passes, values, attributes, [(prior, x0, images.classes)])


def _joined(parts: Sequence[Mapping[str, Tensor]], places: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The columns of all images from those of each size, whose images have these places; nan where one has none."""
    order = torch.tensor([row for rows in places for row in rows]).argsort()
    gaps = [torch.full((len(rows),), torch.nan) for rows in places]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: torch.cat([part.get(name, gap) for part, gap in zip(parts, gaps, strict=True)])[order] for name in names
    }


def _held_out(references: Sequence[Reference]) -> dict[str, float]:
    """The rates of the held-out photos; of several sizes their mean, weighted by the photos."""
    if len(references) == 1:
        return dict(references[0].held_out)
    rates = {}
    for name in dict.fromkeys(name for reference in references for name in reference.held_out):
        own = [(one.held_out[name], one.count[1]) for one in references if name in one.held_out]
        rates[name] = sum(rate * count for rate, count in own) / max(1, sum(count for _, count in own))
    return rates


def open_judges(*folders: str | Path | None) -> list[AttributeClassifier | Clip]:
    """Open who judges the text.

    Args:
        folders: an attribute classifier's folder, a CLIPModel's folder, or names of shipped ones; None is passed over.

    Raises:
        OnbrandError: a folder that holds neither, or two that hold the same.
    """
    judges = [open_judge(folder) for folder in folders if folder is not None]
    if len({isinstance(one, AttributeClassifier) for one in judges}) < len(judges):
        raise OnbrandError(
            "value",
            "text is judged by one attribute classifier and one CLIPModel at most; got "
            f"{', '.join(map(str, folders))}: leave one out",
        )
    return judges


def spread_of(
    cells: Sequence[tuple[Prior, Tensor, Sequence[str]]], words: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Measure diversity and Fréchet distance in the components of each class.

    Args:
        cells: of each size: one Gaussian for each class of image, latents `(B, C, h, w)`, the class of each.
        words: fill the rules' braces.

    Returns:
        "diversity" and "frechet", means over the classes weighted by their images; {} if no class has two images and
        a component.
    """
    ratios, distances, counts, by_class = [], [], [], {}
    for name, prior, x0, classes in ((name, *cell) for cell in cells for name in dict.fromkeys(cell[2])):
        rows = [i for i, other in enumerate(classes) if other == name]
        gaussian = prior.gaussians[name]
        if len(rows) < 2 or not gaussian.k:
            continue
        own, brand = gaussian.coordinates(x0[rows]).double().cpu(), gaussian.variances.double().cpu()
        centre = torch.zeros_like(brand)
        redraws = statistics.redraw(len(rows), REDRAWS, 0)
        ratio = diversity(own, brand)
        by_class[name if name not in by_class else f"{name} {name_of(prior.size)}"] = ratio.components.tolist()
        ratios.append(torch.cat([torch.tensor([ratio.total]), redrawn(own, brand, redraws)]))
        samples = [own, *(own[row] for row in redraws)]
        distances.append(torch.tensor([frechet(*moments(one), centre, brand.diag()) for one in samples]))
        counts.append(len(rows))
    if not counts:
        return {}
    weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    measures = {}
    for name, columns in (("diversity", ratios), ("frechet", distances)):
        values = (torch.stack([column.double() for column in columns], 1) * weights).sum(1)
        # redraws repeat images, which moves both numbers: they give the interval's width, the images its place
        centred = values[1:] - values[1:].mean() + values[0]
        measures[name] = _measure(name, statistics.statistic(centred, float(values[0]), sum(counts)), words)
    measures["diversity"]["components"] = by_class
    return measures


def poses_of(
    stances: Mapping[str, Stance], joints: Tensor, classes: Sequence[str], words: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Measure whether people are where the class has them, and how far they are from its stance.

    Args:
        stances: the stance of each class that shows people.
        joints: `(B, 6, 2, 2)` in pixels; nan: no person.
        classes: the class of each image.
        words: fill the rules' braces.

    Returns:
        "person", the rate of images with a person if and only if the class has a stance; "pose_spread", the root mean
        square distance over the photos' own, if any image has a person of such a class.
    """
    expected = torch.tensor([name in stances for name in classes])
    people = joints.isfinite().flatten(1).all(1)
    squares = torch.full((len(joints),), torch.nan)
    for i, name in enumerate(classes):
        if name in stances:
            squares[i] = (stances[name].distances(joints[i : i + 1]) / stances[name].spread).square()[0]
    mean = statistics.mean(squares)
    spread = statistics.Interval(math.sqrt(mean.value), math.sqrt(mean.low), math.sqrt(mean.high), mean.n)
    person = {"person": _measure("person", statistics.mean((expected == people).float()), words)}
    return person | ({"pose_spread": _measure("pose_spread", spread, words)} if spread.n else {})


def garments_of(differences: Tensor) -> dict[str, dict[str, Any]]:
    """Summarise differences `(B,)` from the garments in the control images, in 1/255; nan: no garment.

    Returns:
        "region", their mean with their median; "region_near", the rate of those up to KEPT.
    """
    near = torch.where(differences.isnan(), torch.nan, (differences <= KEPT + 1e-3).float())
    region = _measure("region", statistics.mean(differences), {}) | {"median": float(differences.nanmedian())}
    return {"region": region, "region_near": _measure("region_near", statistics.mean(near), {"limit": f"{KEPT:g}"})}


def _rate(column: Tensor) -> dict[str, Any]:
    interval = statistics.mean(column)
    return {"rate": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def _words(name: str, words: Mapping[str, str]) -> dict[str, str]:
    """Title and rule of a property or measure, their braces filled."""
    title, rule = WORDS[name]
    return {"title": title.format(**words), "rule": rule.format(**words)}


def _measure(name: str, interval: statistics.Interval, words: Mapping[str, str]) -> dict[str, Any]:
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
    return _words(name, words) | numbers
