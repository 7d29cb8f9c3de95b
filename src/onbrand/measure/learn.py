"""Learns what a brand's pictures are like from a folder of them: ranges by kind of picture, tested on other ones."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onbrand.measure.cut import border
from onbrand.measure.kind import ALL, LINE
from onbrand.measure.pose import SIDE, overlap, silhouettes_of
from onbrand.measure.properties import STATISTICS, measure
from onbrand.measure.reference import Bounds, Reference, judge

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
