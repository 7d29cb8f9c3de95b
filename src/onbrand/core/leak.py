"""Eq. 4-7 per mode: is there a mismatch between training and a start from noise, how large, which K is worth it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian
from onbrand.core.text import Conditional
from onbrand.errors import OnbrandError


@dataclass(frozen=True, eq=False)
class Leak:
    """What of a class is still seen in x_T, against N(0, I), at the first inference timestep.

    Source: docs/concepts/method.md, section 1.
    """

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
    """The leak of a class at abar (Eq. 4-7, per mode), in closed form; sums in float64.

    Directions without a mode share the variance that is left equally. At abar = 0 (zero terminal SNR) there is no leak.

    Args:
        gaussian: the class
        abar: alphas_cumprod at the first inference timestep, in [0, 1]
        tolerance: abar lambda_i above which a mode is worth a component

    Returns:
        The leak: in standard deviations, nats, AUC, and by mode.

    Raises:
        OnbrandError: abar lies outside [0, 1].
    """
    abar = float(abar)
    if not 0 <= abar <= 1:
        raise OnbrandError(
            "value", f"abar (alphas_cumprod) lies in [0, 1]: got {abar}; pass the first inference timestep's"
        )
    mean = gaussian.mean.double().cpu().flatten()
    variances = gaussian.variances.double().cpu()
    d, rest = len(mean), len(mean) - gaussian.k
    mu = gaussian.components.double().cpu() @ mean
    mean_power, spread_power = abar * mu.square(), abar * variances
    outside = abar * max(float(mean.square().sum() - mu.square().sum()), 0.0) if rest else 0.0
    residual = abar * gaussian.residual

    mode_nats = _kl(spread_power - abar) + mean_power / 2
    rest_nats = rest * float(_kl(torch.tensor(residual - abar, dtype=torch.float64))) + outside / 2
    # the best direction is w = (S1 + S0)^-1 m, S1 = abar Sigma + (1 - abar) I, S0 = I: AUC = Phi(sqrt(m . w))
    separation = float((mean_power / (spread_power + 2 - abar)).sum()) + outside / (residual + 2 - abar)
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
    """KL( x_T in training || x_T at generation ) in nats an image, given its text: 0 if there is no mismatch.

    It is what a network that knows the text can tell of the two (Eq. 4-7, per mode), expected over texts, for Gaussian
    modes, in float64.

    Args:
        gaussian: the class
        abar: alphas_cumprod at the first inference timestep, in [0, 1]
        trained: what stands in the noise in training: "image" (x0 itself: plain training, the control), "mean", "text"
            (the mean given the text), "pca" (a draw of the first k components) or "noise" (nothing)
        start: what stands in the noise at generation, by the same words
        r2: the rate of each mode's variance that the text explains: `(K,)` or a number, in [0, 1]
        k: components of "pca"; None: all

    Raises:
        OnbrandError: another word.
    """
    for word in (trained, start):
        if word not in ("image", "mean", "text", "pca", "noise"):
            raise OnbrandError("value", f"x_T holds image, mean, text, pca or noise; got {word!r}")
    variances = gaussian.variances.double().cpu()
    mean, basis = gaussian.mean.double().cpu().flatten(), gaussian.components.double().cpu()
    by_text = torch.as_tensor(r2, dtype=torch.float64).expand_as(variances) * variances
    mu = basis @ mean
    outside = max(float(mean.square().sum() - mu.square().sum()), 0.0)
    rest = len(mean) - gaussian.k

    def spread(word: str) -> tuple[Tensor, float]:
        """Variance of x_T given the text: of the modes, and of each direction outside them."""
        if word == "noise":
            return torch.ones_like(variances), 1.0
        own, left = {"image": (variances - by_text, gaussian.residual)}.get(word, (torch.zeros_like(variances), 0.0))
        if word == "pca":
            own = torch.where(torch.arange(len(variances)) < (gaussian.k if k is None else k), variances, 0.0)
        return abar * own + 1 - abar, abar * left + 1 - abar

    (a, a_rest), (b, b_rest) = spread(trained), spread(start)
    text = [word in ("image", "text") for word in (trained, start)]
    apart = abar * by_text if text[0] != text[1] else torch.zeros_like(by_text)
    off = 0.0
    if (trained == "noise") != (start == "noise"):
        apart, off = apart + abar * mu.square(), abar * outside
    nats = (a / b - 1 - (a / b).log() + apart / b).sum() / 2
    left = torch.tensor(a_rest / b_rest, dtype=torch.float64)
    return float(nats + rest * (left - 1 - left.log()) / 2 + off / b_rest / 2)


def prompt_say(residual: Tensor, abar: float, looks: int = 0) -> Tensor:
    """The prompt's say in each mode: how far an ideal network goes from the class mean to the mean given the prompt.

    The network is trained without a start, and started from the class mean after `looks` looks ahead:
    1 - q^(2 looks + 1), with q^2 = abar residual / (abar residual + 1 - abar). Source: docs/concepts/method.md,
    section 7.

    Args:
        residual: the variance that the prompt leaves, `(K,)`
        abar: alphas_cumprod at the first timestep, in (0, 1]
        looks: looks ahead, >= 0

    Returns:
        `(K,)` in [0, 1].
    """
    power = abar * residual.double().clamp(min=0)
    return 1 - (power / (power + 1 - abar)) ** (looks + 0.5)


def prompt_says(
    gaussian: Gaussian, conditional: Conditional | None, abar: float, looks: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """`prompt_say` of a class by number of looks.

    Without a regression all of a mode's variance counts as left open: the least that the prompt has to say.

    Returns:
        "modes": of each mode; "all": their mean, weighted by what the prompt explains in each.
    """
    variances = gaussian.variances.double().cpu()
    by_text = torch.zeros_like(variances) if conditional is None else variances * conditional.shrink.double().cpu()
    weights = by_text if float(by_text.sum()) > 0 else variances
    modes = {str(number): prompt_say(variances - by_text, abar, number) for number in looks}
    return {
        "all": {number: float((say * weights).sum() / weights.sum()) for number, say in modes.items()},
        "modes": {number: say.tolist() for number, say in modes.items()},
    }


def channel_means_lost(gaussian: Gaussian, abar: float, noise_offset: float = 0.0) -> float:
    """The share of a class's mean brightness and tint that an ideal network loses when it starts from pure noise.

    The network was trained without a start, with offset noise: each channel's noise also has one number of standard
    deviation `noise_offset` at all of its N places, so that in the channel means alone its variance is
    w^2 = 1 + N noise_offset^2. In each, what is lost is sqrt(abar l / (abar l + (1 - abar) w^2)), with l the class's
    variance there. Source: docs/concepts/method.md, section 4.

    Args:
        gaussian: the class
        abar: alphas_cumprod at the first timestep, in [0, 1)
        noise_offset: as trained with; 0: none

    Returns:
        The mean over the channels, weighted by the square of the class mean's average there; in [0, 1].
    """
    channels, places = len(gaussian.mean), gaussian.mean[0].numel()
    means = gaussian.mean.double().flatten(1).mean(1).cpu()
    # of each component, its part along the unit vector that is the same at all places of a channel
    along = gaussian.components.double().cpu().reshape(-1, channels, places).sum(2) / math.sqrt(places)
    modelled = along.square()
    variances = (modelled * gaussian.variances.double().cpu()[:, None]).sum(0)
    variances = variances + gaussian.residual * (1 - modelled.sum(0)).clamp(min=0)
    width = 1 + places * noise_offset**2
    lost = (abar * variances / (abar * variances + (1 - abar) * width)).sqrt()
    weights = means.square()
    return float((lost * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float64).tiny))


def _kl(excess: Tensor) -> Tensor:
    """KL( N(0, 1 + excess) || N(0, 1) ) in nats; excess > -1, or -1 at abar = 1 without variance: infinite."""
    return (excess - excess.log1p()) / 2
