"""One class's Gaussian against scipy's and scikit-learn's."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from onbrand.core import Gaussian
from worlds import raises


def make_gaussian(k: int = 4, shape: tuple[int, int, int] = (2, 3, 4)) -> Gaussian:
    generator = torch.Generator().manual_seed(k)
    d = shape[0] * shape[1] * shape[2]
    components = torch.linalg.qr(torch.randn(d, k, generator=generator))[0].T.contiguous()
    variances = 5.0 / torch.arange(1, k + 1)
    return Gaussian(torch.randn(shape, generator=generator), components, variances, float(variances.sum()) + 6.0, 500)


def covariance(gaussian: Gaussian) -> np.ndarray:
    p, d = gaussian.components.double(), gaussian.mean.numel()
    matrix = p.T @ torch.diag(gaussian.variances.double()) @ p
    return (matrix + gaussian.residual * (torch.eye(d, dtype=torch.float64) - p.T @ p)).numpy()


@pytest.mark.parametrize("k", [0, 1, 4, 24])
def test_likelihood_is_scipys(k: Any) -> None:
    gaussian = make_gaussian(k)
    if k == 24:  # every direction has its component: nothing is left over
        gaussian = Gaussian(gaussian.mean, gaussian.components, gaussian.variances, gaussian.total - 6.0, 500)
        assert gaussian.residual == 0.0
    x = 2 * torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(9))
    theirs = multivariate_normal(gaussian.mean.flatten().double().numpy(), covariance(gaussian))
    np.testing.assert_allclose(gaussian.log_likelihood(x).numpy(), theirs.logpdf(x.flatten(1).numpy()), rtol=1e-5)


def test_residual_is_what_the_total_leaves() -> None:
    gaussian = make_gaussian(4)
    assert gaussian.residual == pytest.approx(6.0 / 20)
    assert np.trace(covariance(gaussian)) == pytest.approx(gaussian.total)


def test_projection_and_coordinates_are_scikit_learns() -> None:
    x = torch.randn(60, 2, 3, 4, generator=torch.Generator().manual_seed(3)) * torch.linspace(1, 3, 4)
    pca = PCA(5).fit(x.flatten(1).numpy())
    gaussian = Gaussian(
        torch.tensor(pca.mean_).reshape(2, 3, 4),
        torch.tensor(pca.components_),
        torch.tensor(pca.explained_variance_),
        float(x.flatten(1).var(0).sum()),
        60,
    )
    scores = pca.transform(x.flatten(1).numpy())
    np.testing.assert_allclose(gaussian.coordinates(x).numpy(), scores, atol=1e-5)
    theirs = scores[:, :3] @ pca.components_[:3] + pca.mean_
    np.testing.assert_allclose(gaussian.project(x, 3).flatten(1).numpy(), theirs, atol=1e-5)
    torch.testing.assert_close(gaussian.project(x, 0), gaussian.mean.expand(60, -1, -1, -1))


def test_draws_have_the_mean_and_the_spread_of_eq_9() -> None:
    gaussian = make_gaussian(4)
    draws = gaussian.draw(20_000, 3, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(draws.mean(0), gaussian.mean, atol=0.08)
    spread = gaussian.coordinates(draws).var(0)
    np.testing.assert_allclose(spread[:3], gaussian.variances[:3], rtol=0.05)
    assert spread[3] < 1e-6  # the fourth component was not drawn


def test_draws_repeat_and_are_nested() -> None:
    gaussian = make_gaussian(4)
    few, many = (gaussian.draw(5, k, torch.Generator().manual_seed(7)) for k in (2, 4))
    torch.testing.assert_close(gaussian.draw(5, 2, torch.Generator().manual_seed(7)), few, rtol=0, atol=0)
    torch.testing.assert_close(gaussian.coordinates(few)[:, :2], gaussian.coordinates(many)[:, :2])
    torch.testing.assert_close(gaussian.draw(3, 0), gaussian.mean.expand(3, -1, -1, -1))
    noise = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(gaussian.draw(5, 2, noise=noise[:, :2]), few, rtol=0, atol=0)


def test_wrong_input_is_refused() -> None:
    gaussian = make_gaussian(4)
    for call in (lambda: gaussian.draw(1, 5), lambda: gaussian.project(torch.zeros(1, 2, 3, 4), 5)):
        with raises("value", "4 components", "k = 5"):
            call()
    with raises("value", "x0", "(B, 2, 3, 4)", "(1, 4, 3, 2)"):
        gaussian.coordinates(torch.zeros(1, 4, 3, 2))
    with raises("value", "noise", "(2, 3)", "(2, 4)"):
        gaussian.draw(2, 3, noise=torch.zeros(2, 4))
    mean, components, variances = gaussian.mean, gaussian.components, gaussian.variances
    with raises("value", "finite"):
        Gaussian(mean * torch.nan, components, variances, 20.0, 500)
    with raises("value", "orthonormal"):
        Gaussian(mean, 2 * components, variances, 20.0, 500)
    with raises("value", "(C, H, W)", "(1, 2, 3, 4)"):
        Gaussian(mean[None], components, variances, 20.0, 500)
    with raises("value", "(2, 24)", "(4,)"):
        Gaussian(mean, components[:2], variances, 20.0, 500)
    with raises("value", "likelihood", "1 image"):
        Gaussian(mean, components[:0], variances[:0], 0.0, 1).log_likelihood(mean[None])
