"""What a brand's pictures are like, as ranges by kind of picture, and pictures held against them."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onbrand.evaluation.likelihood import ALL, LINE
from onbrand.evaluation.pose import SIDE, overlap, silhouettes_of
from onbrand.evaluation.properties import STATISTICS, measure
from onbrand.evaluation.segmentation import border

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Reference:
    """A brand's pictures as ranges; `learn` makes one, `judge` holds pictures against it."""

    ground: tuple[int, int, int]
    """RGB 0..255 of the ground."""
    bounds: Mapping[str, Mapping[str, Bounds]]
    """By kind of picture: lowest and highest value that passes, for every number of properties.STATISTICS that could
    be learned. ALL: of all photos together, for pictures of other kinds."""
    poses: Mapping[str, Tensor]
    """`(SIDE, SIDE)` mean silhouette of the kinds of picture that have one pose."""
    lines: Mapping[str, float]
    """By kind of picture: its photos' LINE quantile of kind_likelihood, in nats a dimension."""
    held_out: Mapping[str, float]
    """Share of the pictures kept back that pass each property; diversity: the variety of photos the prior has not seen,
    where it was learned."""
    count: tuple[int, int]
    """Pictures learned from, and kept back."""

    @property
    def properties(self) -> tuple[str, ...]:
        """The properties it can judge, for one kind of picture at least."""
        known = {number for bounds in self.bounds.values() for number in bounds}
        return tuple(name for name, numbers in STATISTICS.items() if known.intersection(numbers))

    def group(self, name: str) -> str:
        """Whose ranges a picture of the class is held against: the class's, or ALL's. ValueError where neither is."""
        if name not in self.bounds and ALL not in self.bounds:
            raise ValueError(f"ranges were learned for {', '.join(self.bounds)}: got a picture of class {name!r}")
        return name if name in self.bounds else ALL

    def to_json(self) -> str:
        """As JSON text, infinite bounds as null; `from_json` reads it."""
        bounds = {
            group: {name: [b if math.isfinite(b) else None for b in pair] for name, pair in pairs.items()}
            for group, pairs in self.bounds.items()
        }
        poses = {name: [[round(v, 4) for v in row] for row in mean.tolist()] for name, mean in self.poses.items()}
        told = {"ground": self.ground, "bounds": bounds, "poses": poses, "lines": dict(self.lines)}
        return json.dumps(told | {"held_out": dict(self.held_out), "count": self.count})

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The reference that `to_json` wrote."""
        told = json.loads(text)
        bounds = {
            group: {
                name: (-math.inf if low is None else low, math.inf if high is None else high)
                for name, (low, high) in pairs.items()
            }
            for group, pairs in told["bounds"].items()
        }
        poses = {name: torch.tensor(rows) for name, rows in told["poses"].items()}
        return cls(tuple(told["ground"]), bounds, poses, told["lines"], told["held_out"], tuple(told["count"]))


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `judge` found, picture by picture."""

    passed: dict[str, Tensor]
    """`(B,)` bool for each property; True where the picture's kind has no such property."""
    judged: dict[str, Tensor]
    """`(B,)` bool for each property: whether the picture's kind has it."""
    values: dict[str, Tensor]
    """`(B,)` float for each number, those that decide and those that are only told."""

    @property
    def all(self) -> Tensor:
        """`(B,)` bool: passes every property."""
        return torch.stack(list(self.passed.values())).all(0)


def judge(
    reference: Reference,
    pictures: Tensor,
    kinds: Mapping[str, Tensor] | None = None,
    classes: Sequence[str] | None = None,
) -> Verdict:
    """Hold pictures `(B, 3, H, W)` in [0, 1] against a reference. A property is passed where all its numbers lie in
    their ranges; a number that cannot be had (nan: there is no product) fails.

    kinds: what `kind_values` gives for the pictures; without it the kind is not judged. classes: the kind of picture
    asked for, of each; left out: all are held against the ranges of all photos. ValueError where there are none such.
    """
    groups = [reference.group(name) for name in ([ALL] * len(pictures) if classes is None else classes)]
    none = torch.full((SIDE, SIDE), torch.nan)
    poses = torch.stack([reference.poses.get(group, none) for group in groups]) if reference.poses else None
    values = measure(pictures, reference.ground, poses) | dict(kinds or {})
    passed, judged = {}, {}
    for name, numbers in STATISTICS.items():
        if name not in reference.properties or not any(number in values for number in numbers):
            continue
        passed[name] = torch.ones(len(pictures), dtype=torch.bool)
        judged[name] = torch.zeros(len(pictures), dtype=torch.bool)
        for group in set(groups):
            known = [number for number in numbers if number in reference.bounds[group] and number in values]
            rows = torch.tensor([i for i, one in enumerate(groups) if one == group])
            if known:
                low, high = torch.tensor([reference.bounds[group][number] for number in known]).T
                table = torch.stack([values[number][rows] for number in known], 1)
                passed[name][rows] = ((table >= low) & (table <= high)).all(1)
                judged[name][rows] = True
    return Verdict(passed, judged, values)


TAIL = 0.001
"""Share of the pictures learned from that may lie beyond a bound; with fewer than 1 / TAIL the extremes count."""
HELD_OUT = 0.2
"""Share of the pictures kept back to test the ranges on."""
FEWEST = 20
"""Pictures needed to learn from; a kind of picture with fewer is held against the ranges of all together."""
ONE_POSE = 0.7
"""Kinds of picture whose median overlap with their mean silhouette is below this have no pose in common."""
MEANT = 0.995
"""Share of real pictures that each property is meant to pass."""
SLACK = {
    "ground_near": (0.05, None), "ground_border": (0.1, None), "ground_share": (0.02, 0.02),
    "centre_x": (0.015, 0.015), "centre_y": (0.015, 0.015), "margin": (0.016, None), "border_product": (None, 0.005),
    "fill": (0.035, 0.035), "light_mean": (2.0, 2.0), "light_spread": (2.0, 2.0), "light_low": (2.0, 2.0),
    "light_sides": (4.0, 4.0), "pose_overlap": (0.03, None), "kind_lead": (0.02, None),
    "kind_likelihood": (0.05, None),
}  # fmt: skip
"""How far below the lowest and above the highest learned value each number may lie, in its own units; None: any far."""


def learn(
    pictures: Tensor,
    kinds: Mapping[str, Tensor] | None = None,
    ground: tuple[int, int, int] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    decoded: Tensor | None = None,
) -> Reference:
    """Learn a brand's ranges from its pictures `(B, 3, H, W)` in [0, 1]; 1,000 or more make the ranges sharp.

    classes: the kind of each picture; each with FEWEST pictures or more has ranges of its own. kinds: what
    `kind_values` gives for the pictures, for photos that the prior has seen `unseen_values`; the kind is learned too.
    ground: RGB 0..255, the median of all borders where left out. decoded: the same pictures as the model's VAE leaves
    them, which are to pass too (ranges of the ground are of `pictures` alone: no VAE excuses a ground that is off).

    HELD_OUT of the pictures, drawn by the seed, are kept back: the ranges are tested on them, and a warning names the
    properties that fewer than MEANT of them pass. ValueError for fewer than FEWEST pictures, or another number of
    classes, kinds or decoded.
    """
    if len(pictures) < FEWEST:
        raise ValueError(f"ranges are learned from at least {FEWEST} pictures: got {len(pictures)}; give more photos")
    if decoded is not None and decoded.shape != pictures.shape:
        raise ValueError(f"decoded are the same pictures: got {tuple(decoded.shape)} for {tuple(pictures.shape)}")
    kinds = kinds or {}
    if any(len(column) != len(pictures) for column in kinds.values()):
        raise ValueError(f"kinds holds the numbers of each of the {len(pictures)} pictures: got others")
    if classes is not None and len(classes) != len(pictures):
        raise ValueError(f"each picture has one class: got {len(classes)} classes for {len(pictures)} pictures")
    ground = ground or ground_colour(pictures)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    kept = max(1, round(len(pictures) * HELD_OUT))
    test, fit = order[:kept].sort().values, order[kept:].sort().values
    names = [ALL] * len(pictures) if classes is None else list(classes)
    groups = _groups(names, fit)
    sources = [pictures] if decoded is None else [pictures, decoded]

    bounds, poses, lines = {}, {}, {}
    for group, rows in groups.items():
        own = {name: column[rows] for name, column in kinds.items()}
        bounds[group], pose = _ranges([source[rows] for source in sources], ground, own)
        if pose is not None:
            poses[group] = pose
        if own:
            lines[group] = float(own["kind_likelihood"].double().quantile(LINE))
    reference = Reference(ground, bounds, poses, lines, {}, (len(fit), len(test)))
    kept_back = [names[i] for i in test.tolist()]
    tested = judge(reference, pictures[test], {name: column[test] for name, column in kinds.items()}, kept_back)
    judged = {name: mask for name, mask in tested.judged.items() if mask.any()}
    held_out = {name: float(tested.passed[name][mask].float().mean()) for name, mask in judged.items()}
    # one picture of few proves nothing: warn where more fail than chance explains (two standard errors)
    allowed = (1 - MEANT) + 2 * math.sqrt((1 - MEANT) * MEANT / len(test))
    poor = [f"{name} {share:.1%}" for name, share in held_out.items() if 1 - share > max(allowed, 1.5 / len(test))]
    if poor:
        warnings.warn(f"real photos kept back pass less often than meant: {', '.join(poor)}", stacklevel=2)
    if "kind_variety" in kinds and not kinds["kind_variety"].isnan().all():
        held_out["diversity"] = float(kinds["kind_variety"].nanmean())
    return replace(reference, held_out=held_out)


def ground_colour(pictures: Tensor) -> tuple[int, int, int]:
    """RGB 0..255: the median over pictures `(B, 3, H, W)` of the median of each one's border."""
    r, g, b = (border(pictures.float()).median(2).values.median(0).values * 255).round().int().tolist()
    return r, g, b


def _groups(names: Sequence[str], fit: Tensor) -> dict[str, Tensor]:
    """Rows of `fit` by kind of picture; ALL of them where kinds are not told apart, or one has too few."""
    counts = Counter(names)
    rows = {
        name: torch.tensor([i for i in fit.tolist() if names[i] == name], dtype=torch.int64)
        for name, count in counts.items()
        if count >= FEWEST
    }
    return rows if len(rows) == len(counts) else rows | {ALL: fit}


def _ranges(
    sources: Sequence[Tensor], ground: tuple[int, int, int], kinds: Mapping[str, Tensor]
) -> tuple[dict[str, Bounds], Tensor | None]:
    """The range of every number over pictures of one kind, and their mean silhouette where they have one pose.

    sources: the pictures `(B, 3, H, W)` and, if there are any, the same decoded; the ground's ranges are the first's.
    """
    drawn = silhouettes_of(sources[0])
    mean = drawn.mean(0)
    pose = mean if overlap(drawn, mean).nanmedian() >= ONE_POSE else None
    expected = None if pose is None else pose.expand(len(drawn), SIDE, SIDE)
    found = [measure(source, ground, expected) for source in sources]
    values = dict(kinds)
    for name in found[0]:
        values[name] = torch.cat([one[name] for one in (found[:1] if name in STATISTICS["ground"] else found)])
    bounds = {name: _range(column, name) for name, column in values.items() if name in SLACK}
    if kinds:  # the likeliest kind is never wrong, however clearly the photos are their own
        bounds["kind_lead"] = (min(0.0, bounds["kind_lead"][0]), math.inf)
    return bounds, pose


def _range(values: Tensor, name: str) -> Bounds:
    """The values' range without the tails, widened by the number's slack; nan and inf are left out."""
    below, above = SLACK[name]
    values = values[values.isfinite()]
    if not len(values):
        return -math.inf, math.inf
    low, high = values.double().quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    return -math.inf if below is None else low - below, math.inf if above is None else high + above
