"""Eq. 4-7 per mode: is there a mismatch between training and a start from noise, how large, which K is worth it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onbrand.core.gaussian import Gaussian


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


def _kl(excess: Tensor) -> Tensor:
    """KL( N(0, 1 + excess) || N(0, 1) ) in nats; excess > -1, or -1 at abar = 1 without variance: infinite."""
    return (excess - excess.log1p()) / 2
