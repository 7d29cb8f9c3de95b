"""The class of image: closed forms, and which images belong to none."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from onbrand.core import Gaussian, Prior, Provenance
from onbrand.core.fit import fit_rows
from onbrand.evaluation.likelihood import FOLDS, belongs, class_numbers, class_values, unseen_values

PROVENANCE = Provenance("", 1.0, 0.0, (8, 8), "", False, (255, 255, 255))


def test_the_class_is_the_likeliest_and_how_likely() -> None:
    numbers = class_numbers(torch.tensor([[-10.0, -4.0], [-1.0, -9.0]]), torch.tensor([0, 0]), 2)
    assert numbers["class_lead"].tolist() == [-3, 4] and numbers["class_likelihood"].tolist() == [-5, -0.5]
    assert class_numbers(torch.tensor([[-3.0]]), torch.tensor([0]), 1)["class_lead"].item() == float("inf")


def test_images_beyond_every_line_belong_to_no_class() -> None:
    gaussians = {
        name: Gaussian(torch.full((1, 1, 2), mean), torch.eye(2), torch.ones(2), total=2.0, count=99)
        for name, mean in (("a", 0.0), ("b", 10.0))
    }
    prior = Prior(gaussians, PROVENANCE)
    radius = 3.0  # log p = -log(2 pi) - r^2 / 2, in two dimensions
    line = (-math.log(2 * math.pi) - radius**2 / 2) / 2
    x0 = torch.tensor([[0.0, 2.9], [0.0, 3.1], [10.0, 7.1], [10.0, 6.9], [5.0, 5.0]]).view(5, 1, 1, 2)
    assert belongs({"a": line, "b": line}, prior, x0).tolist() == [True, False, True, False, False]
    assert belongs({"a": line, "b": -math.inf}, prior, x0).all()
    assert belongs({"": line}, prior, x0).tolist() == [True, False, True, False, False], "one line for all"


def sample(n: int, seed: int, d: int = 64) -> torch.Tensor:
    """`(n, 1, 8, d / 8)`: six strong directions and white noise."""
    spread = torch.cat([4 * 0.8 ** torch.arange(6), torch.full((d - 6,), 0.3)])
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * spread).view(n, 1, 8, d // 8)


@pytest.mark.parametrize("flip", [False, True])
def test_a_photo_unseen_is_as_likely_as_scikit_learns_pca_of_the_others_has_it(flip: Any) -> None:
    """Folds of one photo each: truth by sklearn's and scipy's density, the mirrored one left out as well."""
    x0 = sample(FOLDS, 0)
    every = torch.cat([x0, x0.flip(3)]) if flip else x0
    prior = Prior({"a": fit_rows(every, 3), "b": fit_rows(sample(30, 1) + 1, 3)}, PROVENANCE)
    numbers = unseen_values(prior, x0, "a", x0.flip(3) if flip else None)
    for i in range(FOLDS):
        others = torch.tensor([j for j in range(len(every)) if j % FOLDS != i])
        pca = PCA(3, svd_solver="full").fit(every[others].double().flatten(1).numpy())
        parts, rest = pca.components_, pca.explained_variance_
        total = every[others].double().flatten(1).var(0).sum().item()
        white = (total - rest.sum()) / (64 - 3)
        covariance = white * np.eye(64) + (parts.T * (rest - white)) @ parts
        truth = multivariate_normal(pca.mean_, covariance).logpdf(x0[i].double().flatten().numpy())
        other = prior.gaussians["b"].log_likelihood(x0[i : i + 1]).item()
        assert numbers["class_likelihood"][i].item() == pytest.approx(truth / 64, rel=1e-4)
        along = ((x0[i].double().flatten().numpy() - pca.mean_) @ parts.T) ** 2
        assert numbers["class_diversity"][i].item() == pytest.approx(along.sum() / rest.sum(), rel=1e-4)
        assert numbers["class_lead"][i].item() == pytest.approx((truth - other) / 64, rel=1e-4)


def test_new_photos_are_as_likely_as_the_unseen_not_as_the_seen() -> None:
    x0, new = sample(60, 0, 400), sample(2000, 1, 400)
    prior = Prior({"a": fit_rows(x0, 16)}, PROVENANCE)
    photo_values, fold_values, truth = class_values(prior, x0), unseen_values(prior, x0, "a"), class_values(prior, new)
    middle = [values["class_likelihood"].median().item() for values in (photo_values, fold_values, truth)]
    assert abs(middle[1] - middle[2]) < (middle[0] - middle[2]) / 4
    assert torch.isinf(fold_values["class_lead"]).all(), "one class alone leads"


def test_photos_that_leave_no_spread_are_not_told() -> None:
    x0 = torch.cat([sample(1, 0)] * 2 + [sample(1, 1)])
    numbers = unseen_values(Prior({"a": fit_rows(x0, 2)}, PROVENANCE), x0, "a")["class_likelihood"]
    assert numbers.isnan().tolist() == [False, False, True], "without the third all are alike"
