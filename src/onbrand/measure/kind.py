"""The kind of picture: the class whose Gaussian gives the latent the highest likelihood, and whether any does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

LINE = 0.005
"""A picture less likely under a class than this share of the class's photos does not belong to it (99.5 % line)."""
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


def belongs(lines: Mapping[str, float], prior: Prior, x0: Tensor) -> Tensor:
    """`(B,)` bool: x0 `(B, C, h, w)` is at least as likely under some class as that class's line (Reference.lines)."""
    likelihoods = prior.classify(x0)[1].cpu() / x0[0].numel()
    least = torch.tensor([lines.get(name, lines.get(ALL, -math.inf)) for name in prior.classes])
    return (likelihoods >= least).any(1)
