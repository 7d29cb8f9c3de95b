"""Eq. 4-7 per mode: is there a mismatch between training and a start from noise, how large, which K is worth it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian
from onbrand.core.text import Conditional


@dataclass(frozen=True, eq=False)
class Leak:
    """What of a class is still seen in x_T, against N(0, I), at the first inference timestep (METHOD.md section 4)."""

    abar: float
    """alphas_cumprod at the first inference timestep."""
    sigma: float
    """|sqrt(abar) mean|: how many standard deviations of the noise the class mean stands out."""
    nats: float
    """KL( training x_T || N(0, I) ) of the Gaussian, all directions."""
    auc: float
    """Of the best linear test between training x_T and N(0, I); .5 is chance."""
    brightness: float
    """The share of sigma along the all-ones direction, sqrt(d abar) |average of the mean| (Eq. 6, its root)."""
    k_worth: int
    """Modes with abar lambda_i above the tolerance."""
    means_seen: int
    """Modes with abar mu_i^2 >= 1; what of the mean lies outside the modes counts as one more."""
    spreads_seen: int
    """Modes with abar lambda_i >= 1."""
    mean_power: Tensor
    """`(K,)` abar mu_i^2."""
    spread_power: Tensor
    """`(K,)` abar lambda_i."""
    mode_nats: Tensor
    """`(K,)` each mode's share of nats; the rest is outside the modes."""


def measure_leak(gaussian: Gaussian, abar: float, tolerance: float = 1.0) -> Leak:
    """The leak of a class at abar in [0, 1] (Eq. 4-7, per mode), in closed form; sums in float64.

    Directions without a mode share the variance that is left equally. abar = 0 (zero terminal SNR): no leak.
    Raises ValueError for an abar outside [0, 1].
    """
    abar = float(abar)
    if not 0 <= abar <= 1:
        raise ValueError(f"abar (alphas_cumprod) lies in [0, 1]: got {abar}; pass the first inference timestep's")
    mean = gaussian.mean.double().cpu().flatten()
    variances = gaussian.variances.double().cpu()
    d, rest = len(mean), len(mean) - gaussian.k
    mu = gaussian.components.double().cpu() @ mean
    mean_power, spread_power = abar * mu.square(), abar * variances
    outside = abar * max(float(mean.square().sum() - mu.square().sum()), 0.0) if rest else 0.0
    left = abar * gaussian.residual

    mode_nats = _kl(spread_power - abar) + mean_power / 2
    rest_nats = rest * float(_kl(torch.tensor(left - abar, dtype=torch.float64))) + outside / 2
    # the best direction is w = (S1 + S0)^-1 m, S1 = abar Sigma + (1 - abar) I, S0 = I: AUC = Phi(sqrt(m . w))
    separation = float((mean_power / (spread_power + 2 - abar)).sum()) + outside / (left + 2 - abar)
    return Leak(
        abar=abar,
        sigma=math.sqrt(abar) * float(mean.norm()),
        nats=float(mode_nats.sum()) + rest_nats,
        auc=0.5 * (1 + math.erf(math.sqrt(separation / 2))),
        brightness=math.sqrt(d * abar) * abs(float(mean.mean())),
        k_worth=int((spread_power > tolerance).sum()),
        means_seen=int((mean_power >= 1).sum()) + (outside >= 1),
        spreads_seen=int((spread_power >= 1).sum()),
        mean_power=mean_power.float(),
        spread_power=spread_power.float(),
        mode_nats=mode_nats.float(),
    )


def mismatch(
    gaussian: Gaussian, abar: float, trained: str, start: str, r2: Tensor | float = 0.0, k: int | None = None
) -> float:
    """KL( x_T in training || x_T at generation ) in nats a picture, given its text, at abar in [0, 1].

    What a network that knows the text can tell of the two (Eq. 4-7, per mode); 0: no mismatch. `trained` and `start`
    say what stands in the noise: "picture" (x0 itself: plain training, the control), "mean", "text" (the mean given
    the text), "pca" (a draw of the first k components) or "noise" (nothing). r2: `(K,)` or a number in [0, 1], the
    share of each mode's variance that the text tells. Expected over texts, Gaussian modes, in float64. ValueError for
    another word.
    """
    for word in (trained, start):
        if word not in ("picture", "mean", "text", "pca", "noise"):
            raise ValueError(f"x_T holds picture, mean, text, pca or noise; got {word!r}")
    variances = gaussian.variances.double().cpu()
    mean, basis = gaussian.mean.double().cpu().flatten(), gaussian.components.double().cpu()
    told = torch.as_tensor(r2, dtype=torch.float64).expand_as(variances) * variances
    mu = basis @ mean
    outside = max(float(mean.square().sum() - mu.square().sum()), 0.0)
    rest = len(mean) - gaussian.k

    def spread(word: str) -> tuple[Tensor, float]:
        """Variance of x_T given the text: of the modes, and of each direction outside them."""
        if word == "noise":
            return torch.ones_like(variances), 1.0
        own, left = {"picture": (variances - told, gaussian.residual)}.get(word, (torch.zeros_like(variances), 0.0))
        if word == "pca":
            own = torch.where(torch.arange(len(variances)) < (gaussian.k if k is None else k), variances, 0.0)
        return abar * own + 1 - abar, abar * left + 1 - abar

    (a, a_rest), (b, b_rest) = spread(trained), spread(start)
    text = [word in ("picture", "text") for word in (trained, start)]
    apart = abar * told if text[0] != text[1] else torch.zeros_like(told)
    off = 0.0
    if (trained == "noise") != (start == "noise"):
        apart, off = apart + abar * mu.square(), abar * outside
    nats = (a / b - 1 - (a / b).log() + apart / b).sum() / 2
    left = torch.tensor(a_rest / b_rest, dtype=torch.float64)
    return float(nats + rest * (left - 1 - left.log()) / 2 + off / b_rest / 2)


def prompt_say(left: Tensor, abar: float, looks: int = 0) -> Tensor:
    """The prompt's say in each mode, `(K,)` in [0, 1]: how much of the way from the class mean to the mean given the
    prompt an ideal network trained as usual goes, started from the class mean after `looks` looks ahead.

    left: `(K,)` variance that the prompt leaves; abar in (0, 1], at the first timestep. 1 - q^(2 looks + 1), with q^2 =
    abar left / (abar left + 1 - abar) (docs/method.md, section 7).
    """
    seen = abar * left.double().clamp(min=0)
    return 1 - (seen / (seen + 1 - abar)) ** (looks + 0.5)


def prompt_says(
    gaussian: Gaussian, conditional: Conditional | None, abar: float, looks: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """`prompt_say` of a class by number of looks: "modes", of each, and "all", their mean by what the prompt tells in
    each. Without a regression all of a mode's variance counts as left open: the least that the prompt has to say."""
    variances = gaussian.variances.double().cpu()
    told = torch.zeros_like(variances) if conditional is None else variances * conditional.shrink.double().cpu()
    weights = told if float(told.sum()) > 0 else variances
    modes = {str(number): prompt_say(variances - told, abar, number) for number in looks}
    return {
        "all": {number: float((say * weights).sum() / weights.sum()) for number, say in modes.items()},
        "modes": {number: say.tolist() for number, say in modes.items()},
    }


def _kl(excess: Tensor) -> Tensor:
    """KL( N(0, 1 + excess) || N(0, 1) ) in nats; excess > -1, or -1 at abar = 1 without variance: infinite."""
    return (excess - excess.log1p()) / 2
