"""Frechet distance against scipy's matrix square root, and closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from onbrand.evaluation.statistics import distance, frechet, moments, root
from worlds import raises


def gaussian(k: int, seed: int, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(k, rank or k, generator=generator, dtype=torch.float64)
    return torch.randn(k, generator=generator, dtype=torch.float64), factor @ factor.T


@pytest.mark.parametrize("k", [1, 5, 40])
def test_frechet_is_scipys_formula(k: Any) -> None:
    (a, cov_a), (b, cov_b) = gaussian(k, 0), gaussian(k, 1)
    cross = linalg.sqrtm(cov_a.numpy() @ cov_b.numpy())
    expected = float(((a - b) ** 2).sum() + cov_a.trace() + cov_b.trace()) - 2 * np.trace(cross).real
    assert frechet(a, cov_a, b, cov_b) == pytest.approx(expected, rel=1e-6)


def test_one_dimension_and_equal_gaussians_in_closed_form() -> None:
    one = torch.ones(1)
    assert frechet(one * 3, one[None] * 4, one, one[None] * 9) == pytest.approx(4 + (2 - 3) ** 2)
    a, covariance = gaussian(8, 2, rank=3)  # singular
    assert frechet(a, covariance, a, covariance) == pytest.approx(0, abs=1e-6 * float(covariance.trace()))


def test_root_is_scipys() -> None:
    _, covariance = gaussian(12, 3)
    assert np.allclose(root(covariance).numpy(), linalg.sqrtm(covariance.numpy()), atol=1e-8)


def test_moments_are_numpys_and_distance_grows_with_a_shift() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    mean, covariance = moments(points)
    assert np.allclose(covariance.numpy(), np.cov(points.double().numpy().T))
    assert torch.allclose(mean.float(), points.mean(0))
    assert distance(points, points) == pytest.approx(0, abs=1e-9)
    assert distance(points + 2, points) == pytest.approx(16, rel=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with raises("value", "(2,)", "(2, 2)", "(3,)", "(3, 3)"):
        frechet(torch.ones(2), torch.eye(2), torch.ones(3), torch.eye(3))
    with raises("value", "covariance", "(1, 3)"):
        moments(torch.ones(1, 3))
