"""docs/concepts/method.md, section 5's exact table: ideal networks in one Gaussian mode, through diffusers' own DDIM.

text gives m = mu + N(0, vm), x0 = m + N(0, lc). Every state is linear in four things, so it is carried as their
coefficients (1, m - mu, eps, xi), and mean, variance and slope follow exactly; nothing is sampled.
"""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from onbrand.core import constant, estimate, handoff, matched_noise, target, window, x_init

ONE, TEXT, EPS, XI = torch.eye(4, dtype=torch.float64)
NOTHING = torch.zeros(4, dtype=torch.float64)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
BACKGROUND, LIGHT = (110.0, 300.0, 300.0), (27.0, 400.0, 950.0)

# start, gain trained with, hand-off, then share of the mean / variance ratio / text slope for BACKGROUND and for LIGHT
TABLE = {
    "standard, pure noise": ("noise", None, False, (0.171, 0.155, 0.171), (0.065, 0.081, 0.065)),
    "class mean, no training": ("mean", None, False, (1.000, 0.154, 0.171), (1.000, 0.080, 0.065)),
    "class PCA draw, no training": ("pca", None, False, (1.000, 0.840, 0.171), (1.000, 0.953, 0.065)),
    "text-conditional, no training": ("text", None, False, (1.000, 0.982, 1.000), (1.000, 0.989, 1.000)),
    "mean offset (paper)": ("mean", window, False, (1.000, 0.145, 0.323), (1.000, 0.070, 0.269)),
    "the same + exact hand-off": ("mean", window, True, (1.000, 0.592, 1.000), (1.000, 0.344, 1.000)),
    "mean offset, constant gain": ("mean", constant, False, (1.000, 0.813, 0.997), (1.000, 0.621, 0.997)),
}


def schedule(**options: object) -> DDIMScheduler:
    """SD's, 20 leading steps, its alphas in float64."""
    scheduler = DDIMScheduler(**{**SD, "set_alpha_to_one": False, **options})
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def denoise(x: Tensor, abar: Tensor, gain: float, mode: tuple[float, float, float], noise: float = 1.0) -> Tensor:
    """E[x0 | x_t, text] of a network trained on x_t = c x0 + k mu + sqrt(1 - abar) eps, k = sqrt(1 - abar) gain."""
    mu, _, lc = mode
    k = (1 - abar).sqrt() * gain
    c = abar.sqrt() - k
    m = mu * ONE + TEXT
    return m + c * lc / (c**2 * lc + (1 - abar) * noise) * (x - c * m - k * mu * ONE)


def scores(x: Tensor, mode: tuple[float, float, float]) -> tuple[float, float, float]:
    """Share of the mean, variance ratio, text slope of a result in coefficients."""
    mu, vm, lc = mode
    variance = x @ torch.diag(torch.tensor([0, vm, 1, 1], dtype=torch.float64)) @ x
    return float(x[0] / mu), float(variance / (vm + lc)), float(x[1])


def run(start: str, train: Any, hand: bool, mode: tuple[float, float, float]) -> tuple[float, float, float]:
    mu, vm, lc = mode
    scheduler = schedule()
    first, second = scheduler.timesteps[:2].tolist()
    abars = scheduler.alphas_cumprod
    gains = torch.zeros(1000) if train is None else train(scheduler, {window: 950, constant: first}[train])
    x_start = {
        "mean": mu * ONE,
        "pca": mu * ONE + math.sqrt(vm + lc) * XI,
        "text": mu * ONE + TEXT + math.sqrt(lc) * XI,
    }
    x = EPS if start == "noise" else x_init(x_start[start], EPS, float(abars[first]))
    for t in scheduler.timesteps.tolist():
        x0_hat = denoise(x, abars[t], float(gains[t]), mode)
        _, eps_hat = estimate("sample", x0_hat, x, float(abars[t]))
        after = scheduler.step(eps_hat, t, x, eta=0.0).prev_sample
        if hand and t == first:
            after = handoff(x.float(), after.float(), EPS.float(), float(abars[first]), float(abars[second])).double()
        x = after
    return scores(x, mode)


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("column", [0, 1], ids=["white background", "natural brightness"])
def test_the_exact_table(row: Any, column: Any) -> None:
    start, train, hand, *expected = TABLE[row]
    assert run(start, train, hand, (BACKGROUND, LIGHT)[column]) == pytest.approx(expected[column], abs=1e-3)


@pytest.mark.parametrize("mode, expected", [(BACKGROUND, (1.0, 0.83, 1.0)), (LIGHT, (0.99, 0.66, 0.99))])
def test_zero_terminal_snr(mode: Any, expected: Any) -> None:
    """The table's footnote, sampled there to .01: trailing spacing, abar 0 at the first step."""
    scheduler = schedule(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    x = EPS
    assert scheduler.alphas_cumprod[scheduler.timesteps[0]] < 1e-12
    for t in scheduler.timesteps.tolist():
        abar = scheduler.alphas_cumprod[t]
        x0_hat = denoise(x, abar, 0.0, mode)
        _, eps_hat = estimate("sample", x0_hat, x, float(abar))
        output = target("v_prediction", x0_hat, eps_hat, float(abar))
        x = scheduler.step(output, t, x, eta=0.0).prev_sample
    assert scores(x, mode) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("mode, expected", [(BACKGROUND, (0.78, 0.31, 0.78)), (LIGHT, (0.62, 0.13, 0.62))])
def test_offset_noise(mode: Any, expected: Any) -> None:
    """The table's footnote: offset noise .1 over 64 x 64 pixels, started from pure noise."""
    scheduler, x = schedule(), EPS
    for t in scheduler.timesteps.tolist():
        abar = scheduler.alphas_cumprod[t]
        x0_hat = denoise(x, abar, 0.0, mode, noise=1 + 0.1**2 * 64 * 64)
        _, eps_hat = estimate("sample", x0_hat, x, float(abar))
        x = scheduler.step(eps_hat, t, x, eta=0.0).prev_sample
    assert scores(x, mode) == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("mode", [BACKGROUND, LIGHT])
def test_a_standard_model_loses_what_method_says(mode: Any) -> None:
    """Section 4: from pure noise the share kept of the mean is 1 - sqrt(abar lc / (abar lc + 1 - abar))."""
    abar = float(schedule().alphas_cumprod[951])
    loss = math.sqrt(abar * mode[2] / (abar * mode[2] + 1 - abar))
    assert run("noise", None, False, mode)[0] == pytest.approx(1 - loss, abs=0.03)


@pytest.mark.parametrize("train, first", [(window, 950), (constant, 951)])
def test_the_network_above_is_the_regression_on_matched_noise(train: Any, first: Any) -> None:
    """That `denoise` is what training on core's matched noise leads to: least squares on samples of it."""
    mu, vm, lc = LIGHT
    scheduler = schedule()
    gains = train(scheduler, first)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 400_000, generator=generator)
    m = mu + math.sqrt(vm) * z[0]
    x0 = m + math.sqrt(lc) * z[1]
    for t in (960, 901, 301):
        abar = float(scheduler.alphas_cumprod[t])
        eps_new = matched_noise(z[2], x0, torch.full_like(x0, mu), float(gains[t]))
        x_t = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * eps_new
        regressors = torch.stack([x_t, m, torch.ones_like(m)], 1).double()
        coefficients = torch.linalg.lstsq(regressors, x0.double()[:, None]).solution.flatten()
        intercept = denoise(NOTHING, scheduler.alphas_cumprod[t], float(gains[t]), LIGHT)  # at x_t = 0, m = mu
        slope = denoise(ONE, scheduler.alphas_cumprod[t], float(gains[t]), LIGHT)[0] - intercept[0]
        assert float(coefficients[0]) == pytest.approx(float(slope), abs=0.1)
        assert float(coefficients[1]) == pytest.approx(float(intercept[1]), abs=0.02)
        assert float(coefficients[1] * mu + coefficients[2]) == pytest.approx(float(intercept[0]), abs=0.3)
