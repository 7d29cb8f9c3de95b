"""Variance ratio in closed form and against the Gaussian it is for."""

import pytest
import torch

from onbrand.core.gaussian import Gaussian
from onbrand.evaluation import statistics
from onbrand.evaluation.statistics import diversity, redrawn
from worlds import raises

VARIANCES = torch.tensor([9.0, 4.0, 1.0])


def test_draws_from_the_prior_have_its_diversity_and_shrunk_ones_less() -> None:
    gaussian = Gaussian(torch.randn(2, 3, 3), torch.eye(18)[:3], VARIANCES, total=20.0, count=99)
    coordinates = gaussian.coordinates(gaussian.draw(20000, 3, torch.Generator().manual_seed(0)))
    full = diversity(coordinates, gaussian.variances)
    assert full.total == pytest.approx(1, abs=0.03)
    assert torch.allclose(full.components, torch.ones(3, dtype=torch.float64), atol=0.04)
    narrow = diversity(coordinates * torch.tensor([0.5, 1.0, 1.0]), gaussian.variances)
    assert narrow.total == pytest.approx((9 / 4 + 4 + 1) / 14, rel=0.03)
    assert narrow.components[0].item() == pytest.approx(0.25, rel=0.04)


def test_a_shifted_mean_is_no_diversity() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    assert diversity(points + 100, VARIANCES).total == pytest.approx(diversity(points, VARIANCES).total, rel=1e-5)


def test_a_component_without_variance_has_no_ratio() -> None:
    assert diversity(torch.randn(9, 2), torch.tensor([1.0, 0.0])).components[1].isnan()


def test_redrawn_is_the_ratio_of_each_redraw() -> None:
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)) + 5
    indices = statistics.redraw(30, 7, seed=0)
    expected = [diversity(points[row], VARIANCES).total for row in indices]
    assert redrawn(points, VARIANCES, indices).tolist() == pytest.approx(expected, rel=1e-6)
    interval = statistics.statistic(redrawn(points, VARIANCES, statistics.redraw(30, 500, 0)), 0.2, 30)
    assert interval.low < diversity(points, VARIANCES).total < interval.high


def test_what_does_not_fit_is_refused() -> None:
    with raises("value", "(1, 3)", "(3,)"):
        diversity(torch.ones(1, 3), VARIANCES)
    with raises("value", "(5, 2)", "(3,)"):
        diversity(torch.ones(5, 2), VARIANCES)
    with raises("value", "ratio", "no variance"):
        diversity(torch.ones(5, 3), torch.zeros(3))
