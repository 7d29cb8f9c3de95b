"""A brand's photos as ranges, learned by class of image, and images compared with them."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.evaluation.likelihood import ALL, LINE
from onbrand.evaluation.pose import SIDE, overlap, silhouettes_of
from onbrand.evaluation.properties import PROPERTIES, RGB, SLACK, measure
from onbrand.evaluation.segmentation import border
from onbrand.io import read_content

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Reference:
    """A brand's photos as ranges; `learn` makes one, `judge` compares images with it."""

    background: RGB
    """RGB 0..255 of the background."""
    bounds: Mapping[str, Mapping[str, Bounds]]
    """Class of image -> number of PROPERTIES -> the lowest and highest value that passes. ALL: of all photos together,
    for images of other classes."""
    poses: Mapping[str, Tensor]
    """Class of image -> `(SIDE, SIDE)` mean silhouette in [0, 1], for classes that have one pose."""
    lines: Mapping[str, float]
    """Class of image -> LINE quantile of its photos' class_likelihood, in nats a dimension."""
    held_out: Mapping[str, float]
    """Property -> rate of the held-out photos that pass; diversity: that of photos which the prior has not seen, if
    known."""
    count: tuple[int, int]
    """Photos learned from, and held out."""

    @property
    def properties(self) -> tuple[str, ...]:
        """Names of the properties that it can judge, for one class of image at least."""
        numbers = {number for bounds in self.bounds.values() for number in bounds}
        return tuple(one.name for one in PROPERTIES if numbers.intersection(one.numbers))

    def group(self, name: str) -> str:
        """The group whose ranges judge an image of the class: the class itself, or ALL.

        Raises:
            OnbrandError: neither has ranges.
        """
        if name not in self.bounds and ALL not in self.bounds:
            raise OnbrandError(
                "value", f"ranges were learned for {', '.join(self.bounds)}: got an image of class {name!r}"
            )
        return name if name in self.bounds else ALL

    def to_json(self) -> str:
        """As JSON text, infinite bounds as null; `from_json` reads it."""
        bounds = {
            group: {name: [b if math.isfinite(b) else None for b in pair] for name, pair in pairs.items()}
            for group, pairs in self.bounds.items()
        }
        poses = {name: [[round(v, 4) for v in row] for row in mean.tolist()] for name, mean in self.poses.items()}
        content = {"background": self.background, "bounds": bounds, "poses": poses, "lines": dict(self.lines)}
        return json.dumps(content | {"held_out": dict(self.held_out), "count": self.count})

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The reference that `to_json` wrote. Raises OnbrandError for another text, by the field that is wrong."""
        content = read_content(text, "a reference", "reference")
        for name, rows in content["poses"].items():
            if {len(rows), *map(len, rows)} != {SIDE}:
                raise OnbrandError("folder", f"a reference is damaged: the pose of {name!r} must be {SIDE} x {SIDE}")
        bounds = {
            group: {
                name: (-math.inf if low is None else low, math.inf if high is None else high)
                for name, (low, high) in pairs.items()
            }
            for group, pairs in content["bounds"].items()
        }
        poses = {name: torch.tensor(rows) for name, rows in content["poses"].items()}
        return cls(
            background=tuple(content["background"]),
            bounds=bounds,
            poses=poses,
            lines=content["lines"],
            held_out=content["held_out"],
            count=tuple(content["count"]),
        )


@dataclass(frozen=True, eq=False)
class Verdict:
    """The result of `judge`, image by image."""

    passed: dict[str, Tensor]
    """Property -> `(B,)` bool; True if the image's class has no such property."""
    judged: dict[str, Tensor]
    """Property -> `(B,)` bool: whether the image's class has it."""
    values: dict[str, Tensor]
    """Number -> `(B,)` float: those that decide, and those that only describe."""

    @property
    def all(self) -> Tensor:
        """`(B,)` bool: passes every property."""
        return torch.stack(list(self.passed.values())).all(0)


def judge(
    reference: Reference,
    images: Tensor,
    likelihoods: Mapping[str, Tensor] | None = None,
    classes: Sequence[str] | None = None,
) -> Verdict:
    """Compare images with a reference.

    An image passes a property if all its numbers lie in their ranges. A number that could not be measured (nan: there
    is no product) fails.

    Args:
        reference: the ranges.
        images: `(B, 3, H, W)` in [0, 1].
        likelihoods: `class_values` of the images; the class is not judged without them.
        classes: the requested class of each image; the default compares all with the ranges of all photos.

    Raises:
        OnbrandError: a class without ranges, if there are none of all photos.
    """
    groups = [reference.group(name) for name in ([ALL] * len(images) if classes is None else classes)]
    none = torch.full((SIDE, SIDE), torch.nan)
    poses = torch.stack([reference.poses.get(group, none) for group in groups]) if reference.poses else None
    values = measure(images, reference.background, poses) | dict(likelihoods or {})
    passed, judged = {}, {}
    for one in PROPERTIES:
        name, numbers = one.name, one.numbers
        if name not in reference.properties or not any(number in values for number in numbers):
            continue
        passed[name] = torch.ones(len(images), dtype=torch.bool)
        judged[name] = torch.zeros(len(images), dtype=torch.bool)
        for group in set(groups):
            own = [number for number in numbers if number in reference.bounds[group] and number in values]
            rows = torch.tensor([i for i, other in enumerate(groups) if other == group])
            if own:
                low, high = torch.tensor([reference.bounds[group][number] for number in own]).T
                table = torch.stack([values[number][rows] for number in own], 1)
                passed[name][rows] = ((table >= low) & (table <= high)).all(1)
                judged[name][rows] = True
    return Verdict(passed, judged, values)


TAIL = 0.001
"""Share of the photos that may lie beyond a bound; with fewer than 1 / TAIL photos the extremes count."""
HELD_OUT = 0.2
"""Share of the photos that is held out to test the ranges on."""
FEWEST = 20
"""Photos needed to learn from; a class of image with fewer is judged by the ranges of all together."""
ONE_POSE = 0.7
"""A class has one pose if the median overlap of its photos with their mean silhouette is at least this."""
TARGET = 0.995
"""Rate of real images that should pass each property."""


def learn(
    images: Tensor,
    likelihoods: Mapping[str, Tensor] | None = None,
    background: RGB | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    decoded: Tensor | None = None,
) -> Reference:
    """Learn a brand's ranges from its photos; 1,000 or more make them sharp.

    HELD_OUT of the photos test the ranges; a warning names the properties that fewer than TARGET of them pass.

    Args:
        images: `(B, 3, H, W)` in [0, 1], the photos.
        likelihoods: `class_values` of the photos, cross-fitted if the prior has seen them; the class is not learned
            without them.
        background: RGB 0..255; the default is the median of all borders.
        seed: fixes which photos are held out.
        classes: the class of each photo; a class of FEWEST photos or more has ranges of its own.
        decoded: `(B, 3, H, W)` in [0, 1], the photos as the autoencoder leaves them, which should pass too. Ranges of
            the background are of `images` alone: no autoencoder excuses another background.

    Raises:
        OnbrandError: fewer than FEWEST photos, or another number of classes, likelihoods or decoded photos.
    """
    if len(images) < FEWEST:
        raise OnbrandError(
            "value", f"ranges are learned from at least {FEWEST} images: got {len(images)}; give more photos"
        )
    if decoded is not None and decoded.shape != images.shape:
        raise OnbrandError(
            "value", f"decoded are the same images: got {tuple(decoded.shape)} for {tuple(images.shape)}"
        )
    likelihoods = likelihoods or {}
    for name, column in likelihoods.items():
        if len(column) != len(images):
            raise OnbrandError(
                "value", f"likelihoods has a number for each of the {len(images)} images: {name} has {len(column)}"
            )
    if classes is not None and len(classes) != len(images):
        raise OnbrandError("value", f"each image has one class: got {len(classes)} classes for {len(images)} images")
    background = background or background_colour(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(len(images) * HELD_OUT))
    test, fit = order[:size].sort().values, order[size:].sort().values
    names = [ALL] * len(images) if classes is None else list(classes)
    groups = _groups(names, fit)
    sources = [images] if decoded is None else [images, decoded]

    bounds, poses, lines = {}, {}, {}
    for group, rows in groups.items():
        own = {name: column[rows] for name, column in likelihoods.items()}
        bounds[group], pose = _ranges([source[rows] for source in sources], background, own)
        if pose is not None:
            poses[group] = pose
        if own:
            lines[group] = float(own["class_likelihood"].double().quantile(LINE))
    reference = Reference(background, bounds, poses, lines, {}, (len(fit), len(test)))
    test_classes = [names[i] for i in test.tolist()]
    verdict = judge(reference, images[test], {name: column[test] for name, column in likelihoods.items()}, test_classes)
    judged = {name: mask for name, mask in verdict.judged.items() if mask.any()}
    held_out = {name: float(verdict.passed[name][mask].float().mean()) for name, mask in judged.items()}
    # one photo of few proves nothing: warn if more fail than chance explains (two standard errors)
    allowed = (1 - TARGET) + 2 * math.sqrt((1 - TARGET) * TARGET / len(test))
    poor = [f"{name} {rate:.1%}" for name, rate in held_out.items() if 1 - rate > max(allowed, 1.5 / len(test))]
    if poor:
        warnings.warn(f"real photos kept back pass less often than meant: {', '.join(poor)}", stacklevel=2)
    if "class_diversity" in likelihoods and not likelihoods["class_diversity"].isnan().all():
        held_out["diversity"] = float(likelihoods["class_diversity"].nanmean())
    return replace(reference, held_out=held_out)


def background_colour(images: Tensor) -> RGB:
    """RGB 0..255: the median over images `(B, 3, H, W)` in [0, 1] of the median of each one's border."""
    r, g, b = (border(images.float()).median(2).values.median(0).values * 255).round().int().tolist()
    return r, g, b


def _groups(names: Sequence[str], fit: Tensor) -> dict[str, Tensor]:
    """Class -> its rows among `fit`, for classes with FEWEST photos or more; ALL of them too if a class has fewer."""
    counts = Counter(names)
    rows = {
        name: torch.tensor([i for i in fit.tolist() if names[i] == name], dtype=torch.int64)
        for name, count in counts.items()
        if count >= FEWEST
    }
    return rows if len(rows) == len(counts) else rows | {ALL: fit}


def _ranges(
    sources: Sequence[Tensor], background: RGB, likelihoods: Mapping[str, Tensor]
) -> tuple[dict[str, Bounds], Tensor | None]:
    """The range of every number over photos of one class, and their mean silhouette if they have one pose.

    sources: the photos `(B, 3, H, W)` and, if there are any, the same decoded; the background's ranges are the first's.
    """
    silhouettes = silhouettes_of(sources[0])
    mean = silhouettes.mean(0)
    pose = mean if overlap(silhouettes, mean).nanmedian() >= ONE_POSE else None
    expected = None if pose is None else pose.expand(len(silhouettes), SIDE, SIDE)
    numbers = [measure(source, background, expected) for source in sources]
    values = dict(likelihoods)
    undecoded = {number for one in PROPERTIES if not one.decoded for number in one.numbers}
    for name in numbers[0]:
        values[name] = torch.cat([one[name] for one in (numbers[:1] if name in undecoded else numbers)])
    bounds = {name: _range(column, name) for name, column in values.items() if name in SLACK}
    if likelihoods:  # an image of the likeliest class is never wrong, however large the photos' own lead
        bounds["class_lead"] = (min(0.0, bounds["class_lead"][0]), math.inf)
    return bounds, pose


def _range(values: Tensor, name: str) -> Bounds:
    """The values' range without the tails, widened by the number's slack; nan and inf are left out."""
    below, above = SLACK[name]
    values = values[values.isfinite()]
    if not len(values):
        return -math.inf, math.inf
    low, high = values.double().quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    return -math.inf if below is None else low - below, math.inf if above is None else high + above
