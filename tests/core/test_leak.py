"""The leak's closed forms against torch's, scikit-learn's and the paper's own special case."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch.distributions import MultivariateNormal, kl_divergence

from onbrand.core import Gaussian, measure_leak
from onbrand.core.leak import channel_means_lost, mismatch
from worlds import raises

SHAPE = (2, 2, 3)
D = 12


def make_gaussian(k: int = 3, mean: float = 3.0, spread: float = 40.0) -> Gaussian:
    generator = torch.Generator().manual_seed(k)
    components = torch.linalg.qr(torch.randn(D, k, generator=generator))[0].T.contiguous()
    variances = spread / torch.arange(1, k + 1) ** 2
    total = float(variances.sum()) + 0.7 * (D - k)
    return Gaussian(mean * torch.randn(SHAPE, generator=generator), components, variances, total, 500)


def training_end(gaussian: Gaussian, abar: float) -> MultivariateNormal:
    """Training's x_T as torch has it."""
    p = gaussian.components.double()
    rest = gaussian.residual * (torch.eye(D, dtype=torch.float64) - p.T @ p)
    covariance = abar * (p.T @ torch.diag(gaussian.variances.double()) @ p + rest) + (1 - abar) * torch.eye(D)
    return MultivariateNormal(math.sqrt(abar) * gaussian.mean.double().flatten(), covariance)


def noise() -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 1, 3, 12])
@pytest.mark.parametrize("abar", [0.0047, 0.07, 0.9])
def test_nats_are_torchs(k: Any, abar: Any) -> None:
    gaussian = make_gaussian(k)
    leak = measure_leak(gaussian, abar)
    assert leak.nats == pytest.approx(float(kl_divergence(training_end(gaussian, abar), noise())), rel=1e-5, abs=1e-7)
    assert float(leak.mode_nats.sum()) <= leak.nats + 1e-4


@pytest.mark.parametrize("mean, abar", [(3.0, 0.005), (3.0, 0.02), (1.0, 0.07)])
def test_auc_is_the_one_measured_by_the_best_linear_test(mean: Any, abar: Any) -> None:
    gaussian = make_gaussian(3, mean)
    torch.manual_seed(0)
    x = torch.cat([training_end(gaussian, abar).sample((20_000,)), noise().sample((20_000,))]).numpy()
    label = np.repeat([1, 0], 20_000)
    classifier = LinearDiscriminantAnalysis().fit(x[::2], label[::2])
    auc = roc_auc_score(label[1::2], classifier.decision_function(x[1::2]))
    assert measure_leak(gaussian, abar).auc == pytest.approx(auc, abs=0.01)


def test_no_other_direction_tells_more() -> None:
    gaussian = make_gaussian(3)
    best, training = measure_leak(gaussian, 0.02).auc, training_end(gaussian, 0.02)
    generator = torch.Generator().manual_seed(0)
    directions = torch.cat([torch.randn(500, D, generator=generator).double(), training.mean[None]])
    shift = (directions @ training.mean).abs()
    spread = torch.einsum("nd,de,ne->n", directions, training.covariance_matrix + torch.eye(D), directions).sqrt()
    aucs = (1 + torch.erf(shift / spread / 2**0.5)) / 2
    assert 0.9 * best < aucs.max() <= best + 1e-9


def test_an_all_ones_mean_is_eq_6_and_7() -> None:
    """d = 16384, abar = .0047, the paper's practical numbers; the one mode is brightness itself."""
    d, abar, mu, variance = 16384, 0.0047, 0.4, 0.05  # mean and variance of a . x0, a = 1 / d
    ones = torch.full((1, d), d**-0.5)
    mean = torch.full((4, 64, 64), mu)
    gaussian = Gaussian(mean, ones, torch.tensor([d * variance]), d * variance, 500)
    leak = measure_leak(gaussian, abar)
    eq_6 = d * abar * mu**2
    eq_7 = eq_6 / (abar * (variance * d - 1) + 1)
    assert leak.sigma**2 == pytest.approx(eq_6, rel=1e-5)
    assert leak.brightness == pytest.approx(leak.sigma, rel=1e-5)
    assert float(leak.mean_power[0]) == pytest.approx(eq_6, rel=1e-5)
    spread = float(leak.spread_power[0]) + 1 - abar
    assert float(leak.mean_power[0]) / spread == pytest.approx(eq_7, rel=1e-5)
    assert (leak.means_seen, leak.spreads_seen, leak.k_worth) == (1, 1, 1)
    # Eq. 4: at abar far below 1 / d nothing is seen
    little = measure_leak(gaussian, 0.01 / d)
    assert little.sigma < 0.1 and (little.means_seen, little.spreads_seen) == (0, 0) and little.auc < 0.53


def test_modes_are_counted_where_they_pass_one() -> None:
    gaussian = make_gaussian(3, mean=0.0, spread=100.0)  # variances 100, 25, 11.1
    assert [measure_leak(gaussian, abar).spreads_seen for abar in (0.009, 0.011, 0.041, 0.1)] == [0, 1, 2, 3]
    assert [measure_leak(gaussian, 0.041, tolerance).k_worth for tolerance in (0.4, 1.0, 4.0, 5.0)] == [3, 2, 1, 0]
    axis = torch.eye(D)[:2]
    gaussian = Gaussian(torch.tensor([3.0, 0.5] + [0.0] * 9 + [2.0]).reshape(SHAPE), axis, torch.ones(2), 3.0, 500)
    # coordinates 3 and .5, and 2 outside the modes: seen from abar 1/9 and 1/4 on
    assert [measure_leak(gaussian, abar).means_seen for abar in (0.1, 0.12, 0.24, 0.26)] == [0, 1, 1, 2]


def test_no_signal_is_no_leak() -> None:
    leak = measure_leak(make_gaussian(3), 0.0)
    assert (leak.sigma, leak.nats, leak.auc, leak.brightness) == (0.0, 0.0, 0.5, 0.0)
    assert (leak.means_seen, leak.spreads_seen, leak.k_worth) == (0, 0, 0)


def test_wrong_input_is_refused() -> None:
    for abar in (-0.1, 1.1, 951, math.nan):
        with raises("value", "[0, 1]", f"got {abar}"):
            measure_leak(make_gaussian(3), abar)


class TestMismatch:
    """KL of two Gaussians, per mode, against torch.distributions' in the full space."""

    def gaussian(self) -> Any:
        generator = torch.Generator().manual_seed(3)
        basis = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0].T[:3]
        return Gaussian(
            torch.randn(2, 2, 2, generator=generator), basis, torch.tensor([9.0, 4.0, 1.0]), 14.0 + 5 * 0.3, 99
        )

    @pytest.mark.parametrize("training", ["image", "mean", "text", "pca", "noise"])
    @pytest.mark.parametrize("start", ["image", "mean", "text", "pca", "noise"])
    def test_is_the_distance_of_the_two_given_the_text(self, training: Any, start: Any) -> None:
        gaussian, abar, r2 = self.gaussian(), 0.3, torch.tensor([0.5, 0.25, 0.0])
        basis, flat = gaussian.components.double(), gaussian.mean.double().flatten()
        # what the text tells of the modes: m ~ N(0, r2 lambda); the expected KL over it, by its second moment
        text_variances = (r2 * gaussian.variances).double()

        def state(level: Any, m: Any) -> Any:
            covariance, mean = torch.zeros(8, 8, dtype=torch.float64), flat.clone()
            if level == "image":
                rest = torch.eye(8, dtype=torch.float64) - basis.T @ basis
                covariance = (
                    basis.T @ torch.diag(gaussian.variances.double() - text_variances) @ basis
                    + gaussian.residual * rest
                )
            if level == "pca":
                covariance = basis.T @ torch.diag(gaussian.variances.double()) @ basis
            if level in ("image", "text"):
                mean = mean + m @ basis
            eye = torch.eye(8, dtype=torch.float64)
            if level == "noise":
                return torch.zeros(8, dtype=torch.float64), eye
            return abar**0.5 * mean, abar * covariance + (1 - abar) * eye

        kl = torch.distributions.kl_divergence
        normal = torch.distributions.MultivariateNormal
        # quadratic in m, so the mean over m = +-sqrt(3 told) along each mode, one at a time, is exact
        zero = torch.zeros(3, dtype=torch.float64)
        base = float(kl(normal(*state(training, zero)), normal(*state(start, zero))))
        exact = base
        for i in range(3):
            for sign in (-1, 1):
                m = zero.clone()
                m[i] = sign * text_variances[i] ** 0.5
                exact += (float(kl(normal(*state(training, m)), normal(*state(start, m)))) - base) / 2
        assert mismatch(gaussian, abar, training, start, r2) == pytest.approx(exact, rel=1e-5, abs=1e-6)

    def test_is_the_leak_where_the_text_is_silent(self) -> None:
        gaussian = self.gaussian()
        assert mismatch(gaussian, 0.1, "image", "noise") == pytest.approx(measure_leak(gaussian, 0.1).nats)

    def test_an_unknown_word_is_refused(self) -> None:
        with raises("value", "x_T", "image, mean, text, pca or noise", "'photo'"):
            mismatch(self.gaussian(), 0.1, "photo", "image")


@pytest.mark.parametrize("abar", [0.0047, 0.00815])
@pytest.mark.parametrize("noise_offset", [0.0, 0.0357, 0.5])
def test_what_is_lost_of_the_channel_means_is_where_the_ideal_networks_ode_ends(
    abar: float, noise_offset: float
) -> None:
    """Its probability-flow ODE in z = x / sqrt(1 - abar) and r, from pure noise, by scipy: dz = x0_hat dr."""
    channels, places, level = 3, 64, 40.0
    rows = torch.eye(channels).repeat_interleave(places, 1) / math.sqrt(places)  # the channel means
    mean = torch.tensor([5.0, -2.0, 1.0])[:, None, None].expand(channels, 8, 8)
    gaussian = Gaussian(mean.clone(), rows, torch.full((3,), level), 3 * level + 0.1 * (3 * 64 - 3), 500)
    start, width = math.sqrt(abar / (1 - abar)), 1 + places * noise_offset**2
    mode = math.sqrt(places) * 5.0  # of the first channel, along its unit vector

    def slope(r: float, z: list[float]) -> list[float]:
        return [mode + r * level * (z[0] - r * mode) / (r * r * level + width)]

    last = 1e4
    end = solve_ivp(slope, (start, last), [0.0], rtol=1e-9, atol=1e-9, method="LSODA").y[0, -1] / last
    assert channel_means_lost(gaussian, abar, noise_offset) == pytest.approx(1 - end / mode, abs=1e-3)


def test_nothing_is_lost_without_a_leak_and_components_need_not_be_channels() -> None:
    gaussian = make_gaussian(3)
    assert channel_means_lost(gaussian, 0.0) == 0
    spread = torch.zeros(0, D)
    flat = Gaussian(torch.ones(SHAPE), spread, torch.zeros(0), 2.0 * D, 9)  # 2 in every direction
    assert channel_means_lost(flat, 0.5) == pytest.approx(math.sqrt(2 / 3), rel=1e-6)
    wider = [channel_means_lost(gaussian, 0.01, offset) for offset in (0.0, 0.1, 1.0)]
    assert wider == sorted(wider, reverse=True) and wider[0] > wider[2]
