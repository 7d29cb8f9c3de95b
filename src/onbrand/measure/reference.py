"""What a brand's pictures are like, as ranges by kind of picture, and pictures held against them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.measure.kind import ALL
from onbrand.measure.pose import SIDE
from onbrand.measure.properties import STATISTICS, measure

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
