"""What a brand's pictures are like, learned from a folder of them: a range for every number, tested on other ones."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onbrand.measure.cut import border
from onbrand.measure.properties import STATISTICS, kind_of, measure

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

TAIL = 0.001
"""Share of the pictures learned from that may lie beyond a bound; with fewer than 1 / TAIL the extremes count."""
HELD_OUT = 0.2
"""Share of the pictures kept back to test the ranges on."""
FEWEST = 20
"""Pictures needed to learn from."""
MEANT = 0.995
"""Share of real pictures that each property is meant to pass."""
SLACK = {
    "ground_near": (0.05, None), "ground_border": (0.1, None), "ground_share": (0.02, 0.02),
    "centre_x": (0.015, 0.015), "centre_y": (0.015, 0.015), "margin": (0.016, None), "border_product": (None, 0.005),
    "fill": (0.035, 0.035), "light_mean": (2.0, 2.0), "light_spread": (2.0, 2.0), "light_low": (2.0, 2.0),
    "light_sides": (4.0, 4.0), "kind_likelihood": (0.05, None),
}  # fmt: skip
"""How far below the lowest and above the highest learned value each number may lie, in its own units; None: any far."""
Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Reference:
    """A brand's pictures as ranges; `learn` makes one, `judge` holds pictures against it."""

    ground: tuple[int, int, int]
    """RGB 0..255 of the ground."""
    bounds: Mapping[str, Bounds]
    """Lowest and highest value that passes, for every number of properties.STATISTICS that could be learned."""
    held_out: Mapping[str, float]
    """Share of the pictures kept back that pass each property."""
    count: tuple[int, int]
    """Pictures learned from, and kept back."""

    @property
    def properties(self) -> tuple[str, ...]:
        """The properties it can judge."""
        return tuple(name for name, numbers in STATISTICS.items() if any(number in self.bounds for number in numbers))

    def to_json(self) -> str:
        """As JSON text, infinite bounds as null; `from_json` reads it."""
        bounds = {name: [b if math.isfinite(b) else None for b in pair] for name, pair in self.bounds.items()}
        return json.dumps({"ground": self.ground, "bounds": bounds, "held_out": self.held_out, "count": self.count})

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The reference that `to_json` wrote."""
        told = json.loads(text)
        bounds = {
            name: (-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in told["bounds"].items()
        }
        return cls(tuple(told["ground"]), bounds, told["held_out"], tuple(told["count"]))


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `judge` found, picture by picture."""

    passed: dict[str, Tensor]
    """`(B,)` bool for each property."""
    values: dict[str, Tensor]
    """`(B,)` float for each number, those that decide and those that are only told."""

    @property
    def all(self) -> Tensor:
        """`(B,)` bool: passes every property."""
        return torch.stack(list(self.passed.values())).all(0)


def learn(
    pictures: Tensor,
    prior: Prior | None = None,
    x0: Tensor | None = None,
    ground: tuple[int, int, int] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    decoded: Tensor | None = None,
) -> Reference:
    """Learn a brand's ranges from its pictures `(B, 3, H, W)` in [0, 1]; 1,000 or more make the ranges sharp.

    With prior and x0 `(B, C, h, w)`, the pictures' latents, the kind of picture is learned too; classes: of each
    picture, the likeliest where left out. ground: RGB 0..255, the median of all borders where left out. decoded: the
    same pictures as the model's VAE leaves them, which are to pass too (ranges of the ground are of `pictures` alone:
    no VAE excuses a ground that is off).

    HELD_OUT of the pictures, drawn by the seed, are kept back: the ranges are tested on them, and a warning names the
    properties that fewer than MEANT of them pass. ValueError for fewer than FEWEST pictures, or x0 of another number.
    """
    if len(pictures) < FEWEST:
        raise ValueError(f"ranges are learned from at least {FEWEST} pictures: got {len(pictures)}; give more photos")
    if decoded is not None and decoded.shape != pictures.shape:
        raise ValueError(f"decoded are the same pictures: got {tuple(decoded.shape)} for {tuple(pictures.shape)}")
    if (prior is None) != (x0 is None) or (x0 is not None and len(x0) != len(pictures)):
        raise ValueError("the kind of picture needs the prior and the x0 of every picture: got one without the other")
    ground = ground or ground_colour(pictures)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    kept = max(1, round(len(pictures) * HELD_OUT))
    test, fit = order[:kept].sort().values, order[kept:].sort().values
    kinds = kind_values(prior, x0, classes) if prior is not None and x0 is not None else {}
    values = measure(pictures[fit], ground) | {name: column[fit] for name, column in kinds.items()}
    if decoded is not None:
        also = measure(decoded[fit], ground)
        kept_out = (*STATISTICS["ground"], *kinds)
        values |= {name: torch.cat([values[name], also[name]]) for name in values if name not in kept_out}
    bounds = {name: _range(column, name) for name, column in values.items() if name in SLACK}
    if kinds:
        bounds["kind_lead"] = (0.0, math.inf)
    reference = Reference(ground, bounds, {}, (len(fit), len(test)))
    tested = judge(reference, pictures[test], {name: column[test] for name, column in kinds.items()})
    held_out = {name: float(passed.float().mean()) for name, passed in tested.passed.items()}
    # one picture of few proves nothing: warn where more fail than chance explains (two standard errors)
    allowed = (1 - MEANT) + 2 * math.sqrt((1 - MEANT) * MEANT / len(test))
    poor = [f"{name} {share:.1%}" for name, share in held_out.items() if 1 - share > max(allowed, 1.5 / len(test))]
    if poor:
        warnings.warn(f"real photos kept back pass less often than meant: {', '.join(poor)}", stacklevel=2)
    return Reference(ground, bounds, held_out, reference.count)


def judge(reference: Reference, pictures: Tensor, kinds: Mapping[str, Tensor] | None = None) -> Verdict:
    """Hold pictures `(B, 3, H, W)` in [0, 1] against a reference. A property is passed where all its numbers lie in
    their ranges; a number that cannot be had (nan: there is no product) fails.

    kinds: what `kind_values` gives for the pictures; without it the kind is not judged.
    """
    values = measure(pictures, reference.ground) | dict(kinds or {})
    passed = {}
    for name, numbers in STATISTICS.items():
        known = [number for number in numbers if number in reference.bounds and number in values]
        if known:
            low, high = torch.tensor([reference.bounds[number] for number in known]).T
            table = torch.stack([values[number] for number in known], 1)
            passed[name] = ((table >= low) & (table <= high)).all(1)
    return Verdict(passed, values)


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


def ground_colour(pictures: Tensor) -> tuple[int, int, int]:
    """RGB 0..255: the median over pictures `(B, 3, H, W)` of the median of each one's border."""
    r, g, b = (border(pictures.float()).median(2).values.median(0).values * 255).round().int().tolist()
    return r, g, b


def _range(values: Tensor, name: str) -> Bounds:
    """The values' range without the tails, widened by the number's slack; nan are left out."""
    below, above = SLACK[name]
    values = values[~values.isnan()]
    if not len(values):
        return -math.inf, math.inf
    low, high = values.double().quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    return -math.inf if below is None else low - below, math.inf if above is None else high + above
