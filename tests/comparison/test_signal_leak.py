"""The rival's Gaussians against scipy's DCT and the data's own moments."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dct, dctn

from onbrand.comparison.baselines import dct_basis, signal_leak, signal_leak_of_low_frequencies
from worlds import raises


@pytest.fixture
def x0() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randn(300, 60, generator=generator) @ torch.randn(60, 60, generator=generator)
    return (coordinates + torch.linspace(-3, 9, 60)).reshape(300, 2, 5, 6)


def test_the_basis_is_scipys() -> None:
    x = np.random.default_rng(0).normal(size=(4, 7))
    np.testing.assert_allclose(x @ dct_basis(7).numpy().T, dct(x, norm="ortho"), atol=1e-12)


def test_each_element_has_its_own_mean_and_variance(x0: Any) -> None:
    gaussian = signal_leak(x0)
    draws = gaussian.draw(40_000, gaussian.k, torch.Generator().manual_seed(1))
    spread = x0.var(0)
    torch.testing.assert_close(gaussian.mean, x0.mean(0))
    assert ((draws.mean(0) - x0.mean(0)).abs() / spread.sqrt()).max() < 0.03
    assert (draws.var(0) / spread - 1).abs().max() < 0.05
    flat = draws.flatten(1)
    assert np.corrcoef(flat[:, 3], flat[:, 4])[0, 1] == pytest.approx(0, abs=0.02), "each by itself"
    assert (gaussian.variances.diff() <= 0).all()


def test_low_frequencies_are_drawn_jointly_and_the_rest_is_nothing(x0: Any) -> None:
    gaussian = signal_leak_of_low_frequencies(x0, n=3)
    draws = gaussian.draw(60_000, gaussian.k, torch.Generator().manual_seed(1)).numpy()
    coefficients = dctn(draws, axes=(2, 3), norm="ortho")
    truth = dctn(x0.numpy(), axes=(2, 3), norm="ortho")[:, :, :3, :3].reshape(300, -1)
    low = coefficients[:, :, :3, :3].reshape(len(coefficients), -1)
    scale = np.sqrt(np.outer(truth.var(0, ddof=1), truth.var(0, ddof=1)))
    np.testing.assert_allclose(low.mean(0), truth.mean(0), atol=0.03 * truth.std())
    np.testing.assert_allclose(np.cov(low.T) / scale, np.cov(truth.T) / scale, atol=0.03)
    coefficients[:, :, :3, :3] = 0
    assert np.abs(coefficients).max() < 1e-3
    assert gaussian.k == 2 * 9


def test_few_images_have_few_components_and_wrong_ones_are_refused(x0: Any) -> None:
    assert signal_leak_of_low_frequencies(x0[:5], n=3).k == 4
    with raises("comparison", "x0", "(1, 2, 5, 6)"):
        signal_leak(x0[:1])
    with raises("comparison", "frequencies", "5 and 6", "n = 6"):
        signal_leak_of_low_frequencies(x0, n=6)
