"""Ridge, cross-validation and residual against scikit-learn's."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, subspace_angles
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from onbrand.core import ConditionalFitter, Gaussian
from onbrand.core import text as text_module
from worlds import raises

N, E, K = 230, 9, 4


@pytest.fixture
def gaussian() -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(2 * 5 * 6, K, generator=generator))[0].T.contiguous()
    return Gaussian(torch.randn(2, 5, 6, generator=generator), components, torch.tensor([9.0, 4, 2, 1]), 30.0, N)


@pytest.fixture
def pairs(gaussian: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """text, x0, coordinates: three of the coordinates follow the text, less and less; the last one does not."""
    generator = torch.Generator().manual_seed(1)
    text = 0.5 + torch.randn(N, E, generator=generator) * torch.linspace(0.2, 3, E)
    y = text @ torch.randn(E, K, generator=generator) * torch.tensor([1.0, 0.5, 0.3, 0.0])
    y = y + torch.randn(N, K, generator=generator) * torch.tensor([1.0, 1.5, 2.0, 1.0]) + 0.3
    outside = torch.randn(N, 60, generator=generator)
    outside -= outside @ gaussian.components.T @ gaussian.components
    return text, gaussian.place(y) + outside.reshape(N, 2, 5, 6), y


def fit(gaussian: Gaussian, text: torch.Tensor, x0: torch.Tensor, alphas: tuple[float, ...], batch: int = 64) -> Any:
    fitter = ConditionalFitter(gaussian)
    for rows in torch.arange(N).split(batch):
        fitter.update(text[rows], x0[rows], rows)
    return fitter.finish(alphas)


@pytest.mark.parametrize("alpha", [0.1, 10.0, 3000.0])
def test_ridge_and_its_r2_are_scikit_learns(gaussian: Any, pairs: Any, alpha: Any) -> None:
    text, x0, y = pairs
    ours = fit(gaussian, text, x0, (alpha,))
    theirs = Ridge(alpha).fit(text.numpy(), y.numpy())
    np.testing.assert_allclose(ours.weight, theirs.coef_.T, atol=2e-4)
    whole = ours.intercept + (text - ours.text_mean) @ ours.weight
    np.testing.assert_allclose(whole, theirs.predict(text.numpy()), atol=1e-3)
    predictions = cross_val_predict(Ridge(alpha), text.numpy(), y.numpy(), cv=PredefinedSplit(np.arange(N) % 5))
    r2 = r2_score(y.numpy(), predictions, multioutput="raw_values")
    np.testing.assert_allclose(ours.r2, r2, atol=1e-4)
    np.testing.assert_allclose(ours.shrink, r2.clip(0, 1), atol=1e-4)
    coordinates = gaussian.coordinates(ours.mean(gaussian, text))
    np.testing.assert_allclose(coordinates, theirs.predict(text.numpy()) * r2.clip(0, 1), atol=1e-3)
    errors = y.numpy() - predictions * r2.clip(0, 1)
    np.testing.assert_allclose(ours.residual, errors.T @ errors / N, atol=2e-3)


def test_the_ridge_is_chosen_by_error_out_of_fold(gaussian: Any, pairs: Any) -> None:
    text, x0, y = pairs
    alphas = (0.01, 1.0, 30.0, 1e3, 1e5)
    folds = PredefinedSplit(np.arange(N) % 5)
    errors = [np.square(cross_val_predict(Ridge(a), text, y, cv=folds) - y.numpy()).sum() for a in alphas]
    assert fit(gaussian, text, x0, alphas).alpha == alphas[int(np.argmin(errors))]


def test_text_that_says_nothing_gives_the_class_mean(gaussian: Any, pairs: Any) -> None:
    text, x0, _ = pairs
    noise = torch.randn(N, E, generator=torch.Generator().manual_seed(8))
    ours = fit(gaussian, noise, x0, (1.0, 1e2, 1e4))
    assert ours.r2.max() < 0.02
    distances = (ours.mean(gaussian, noise) - gaussian.mean).flatten(1).norm(dim=1)
    assert distances.max() < 0.05  # of a spread of 4
    coordinates = gaussian.coordinates(x0)
    np.testing.assert_allclose(ours.residual.diag(), coordinates.square().mean(0), rtol=0.02)
    assert (fit(gaussian, text, x0, (1.0,)).r2[:2] > 0.5).all()  # where it does say something, it is heard


def test_a_coordinate_without_r2_is_not_moved_at_all(gaussian: Any, pairs: Any) -> None:
    text, x0, _ = pairs
    ours = fit(gaussian, text, x0, (0.01,))
    assert ours.r2[3] < 0 and ours.shrink[3] == 0
    assert gaussian.coordinates(ours.mean(gaussian, text))[:, 3].abs().max() < 1e-5


def test_parts_merge_to_one_pass(gaussian: Any, pairs: Any) -> None:
    text, x0, _ = pairs
    whole = fit(gaussian, text, x0, (1.0, 10.0), batch=N)
    parts = [ConditionalFitter(gaussian) for _ in range(7)]
    for i in range(N):
        parts[i % 7].update(text[i : i + 1], x0[i : i + 1], [i])
    union = parts[6].merge(parts[0])
    for part in parts[1:6]:
        union = union.merge(part)
    assert union.count == N
    ours = union.finish((1.0, 10.0))
    for name in ours.TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_draws_have_the_conditional_mean_and_the_residual(gaussian: Any, pairs: Any) -> None:
    text, x0, _ = pairs
    ours = fit(gaussian, text, x0, (1.0,))
    noise = torch.randn(20_000, K, generator=torch.Generator().manual_seed(2))
    coordinates = gaussian.coordinates(ours.draw(gaussian, text[:1].expand(20_000, -1), noise))
    np.testing.assert_allclose(coordinates.mean(0), gaussian.coordinates(ours.mean(gaussian, text[:1]))[0], atol=0.06)
    np.testing.assert_allclose(coordinates.T.cov(), ours.residual, atol=0.12)


def test_wrong_input_is_refused(gaussian: Any, pairs: Any) -> None:
    text, x0, _ = pairs
    fitter = ConditionalFitter(gaussian)
    with raises("value", "(3, 9)", "(2, 2, 5, 6)", "3 numbers"):
        fitter.update(text[:3], x0[:2], [0, 1, 2])
    with raises("value", "text and x0", "finite"):
        fitter.update(text[:2] * torch.nan, x0[:2], [0, 1])
    with raises("value", "0 images in 0 folds"):
        fitter.finish()
    fitter.update(text[:2], x0[:2], [0, 5])  # one fold twice
    with raises("value", "2 images in 1 folds"):
        fitter.finish()
    with raises("value", "text encoder", "9 and 5"):
        fitter.update(text[:2, :5], x0[:2], [0, 1])
    with raises("value", "alphas (0.0,)"):
        fit(gaussian, text, x0, (0.0,))
    bare = Gaussian(gaussian.mean, gaussian.components[:0], gaussian.variances[:0], 30.0, N)
    with raises("value", "components", "K = 0"):
        ConditionalFitter(bare)
    ours = fit(gaussian, text, x0, (1.0,))
    with raises("value", "(B, 9)", "(2, 5)"):
        ours.mean(gaussian, text[:2, :5])
    with raises("value", "noise", "(2, 4)", "(2, 3)"):
        ours.draw(gaussian, text[:2], torch.zeros(2, 3))


class LowRank(RegressorMixin, BaseEstimator):
    """Ridge of a lower rank, on the data themselves: the leading singular directions of what least squares fits.

    The ridge is rows added to the data (Mukherjee & Zhu 2011); for CCA y is whitened before and coloured after.
    """

    def __init__(self, alpha: float, rank: int, whitened: bool) -> None:
        self.alpha, self.rank, self.whitened = alpha, rank, whitened

    def fit(self, t: np.ndarray, y: np.ndarray) -> "LowRank":
        self.centre, self.base = t.mean(0), y.mean(0)
        y = y - self.base
        white = fractional_matrix_power(y.T @ y, -0.5) if self.whitened else np.eye(y.shape[1])
        rows = np.vstack([t - self.centre, np.sqrt(self.alpha) * np.eye(t.shape[1])])
        weight = np.linalg.lstsq(rows, np.vstack([y, np.zeros((t.shape[1], y.shape[1]))]) @ white, rcond=None)[0]
        directions = np.linalg.svd(rows @ weight)[2][: self.rank]
        self.weight = weight @ directions.T @ directions @ np.linalg.inv(white)
        return self

    def predict(self, t: np.ndarray) -> np.ndarray:
        return self.base + (t - self.centre) @ self.weight


class TestLowerRank:
    @pytest.mark.parametrize("whitened", [False, True])
    def test_the_full_rank_is_ridge(self, gaussian: Any, pairs: Any, whitened: Any) -> None:
        text, x0, y = pairs
        weight, base = text_module._Ridge(sums_of(gaussian, text, x0)).solve(10.0, whitened, K)
        theirs = Ridge(10.0).fit(text.numpy(), y.numpy())
        np.testing.assert_allclose(weight, theirs.coef_.T, atol=2e-4)
        np.testing.assert_allclose(base, theirs.intercept_, atol=1e-3)

    @pytest.mark.parametrize("method", ["reduced-rank", "cca"])
    @pytest.mark.parametrize("shrink", [True, False])
    def test_ridge_and_rank_are_chosen_by_error_out_of_fold(self, gaussian: Any, method: Any, shrink: Any) -> None:
        generator, n = torch.Generator().manual_seed(4), 100
        text = 0.5 + torch.randn(n, E, generator=generator) * torch.linspace(0.2, 3, E)
        two = torch.randn(E, 2, generator=generator) @ torch.randn(2, K, generator=generator)
        noise = torch.randn(n, K, generator=generator)
        y = 0.3 + text @ two * torch.tensor([1.0, 0.5, 0.3, 0.2]) + noise * torch.tensor([4.0, 3, 2, 1])
        t, z, whitened, folds = text.numpy(), y.numpy(), method == "cca", PredefinedSplit(np.arange(n) % 5)
        candidates = [(alpha, rank) for alpha in (1.0, 30.0, 1e3) for rank in range(1, K + 1)]
        predictions = {one: cross_val_predict(LowRank(*one, whitened), t, z, cv=folds) for one in candidates}
        best = min(candidates, key=lambda one: np.square(predictions[one] - z).sum())
        assert best == (30.0, 2), "neither end of the lists"

        fitter = ConditionalFitter(gaussian)
        fitter.update(text, gaussian.place(y), torch.arange(n))
        ours = fitter.finish((1.0, 30.0, 1e3), method=method, shrink=shrink)
        assert ours.alpha == best[0] and torch.linalg.matrix_rank(ours.weight, rtol=1e-5) == best[1]
        np.testing.assert_allclose(ours.weight, LowRank(*best, whitened).fit(t, z).weight, atol=2e-4)
        r2 = r2_score(z, predictions[best], multioutput="raw_values")
        shrinkage = r2.clip(0, 1) if shrink else np.ones(K)
        errors = z - predictions[best] * shrinkage
        np.testing.assert_allclose(ours.r2, r2, atol=1e-4)
        np.testing.assert_allclose(ours.shrink, shrinkage, atol=1e-4)
        np.testing.assert_allclose(ours.residual, errors.T @ errors / n, atol=2e-3)

    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_cca_finds_scikit_learns_canonical_directions(self, gaussian: Any, pairs: Any, rank: Any) -> None:
        text, x0, y = pairs
        ridge = text_module._Ridge(sums_of(gaussian, text, x0))
        weight = ridge.solve(1e-8, True, rank)[0].numpy()
        theirs = CCA(rank, scale=False, max_iter=5000, tol=1e-12).fit(text.numpy(), y.numpy())
        angles = subspace_angles(np.linalg.svd(weight)[0][:, :rank], theirs.x_rotations_)
        assert angles.max() < 1e-3
        assert np.linalg.matrix_rank(weight, tol=1e-6) == rank
        t, z = text.numpy() - text.numpy().mean(0), y.numpy() - y.numpy().mean(0)
        variates = t @ theirs.x_rotations_
        best = variates @ np.linalg.lstsq(variates, z, rcond=None)[0]
        np.testing.assert_allclose(t @ weight, best, atol=1e-3 * np.abs(best).max())

    @pytest.mark.parametrize("rank", [1, 2])
    def test_reduced_rank_is_the_best_fit_of_its_rank(self, gaussian: Any, pairs: Any, rank: Any) -> None:
        """Eckart-Young: the fitted values of least squares, cut to their leading singular directions."""
        text, x0, y = pairs
        weight = text_module._Ridge(sums_of(gaussian, text, x0)).solve(1e-8, False, rank)[0].numpy()
        t, z = text.numpy() - text.numpy().mean(0), y.numpy() - y.numpy().mean(0)
        predictions = t @ np.linalg.lstsq(t, z, rcond=None)[0]
        u, s, v = np.linalg.svd(predictions, full_matrices=False)
        np.testing.assert_allclose(t @ weight, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-3)

    def test_one_direction_of_few_pairs_is_found_with_one_rank(self, gaussian: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        text, far = torch.randn(60, E, generator=generator), torch.randn(2000, E, generator=generator)
        truth = torch.outer(torch.randn(E, generator=generator), torch.tensor([1.0, -1, 1, 0.5]))
        y = text @ truth + 4 * torch.randn(60, K, generator=generator)
        errors = {}
        for method in ("ridge", "reduced-rank"):
            fitter = ConditionalFitter(gaussian)
            fitter.update(text, gaussian.place(y), torch.arange(60))
            regression = fitter.finish((1e-2, 1.0, 1e2), method=method, shrink=False)
            errors[method] = float(
                ((far - regression.text_mean) @ regression.weight + regression.intercept - far @ truth).square().mean()
            )
            assert (regression.shrink == 1).all()
        assert errors["reduced-rank"] < errors["ridge"]

    def test_another_method_is_refused(self, gaussian: Any, pairs: Any) -> None:
        fitter = ConditionalFitter(gaussian)
        fitter.update(*pairs[:2], torch.arange(N))
        with raises("value", "ridge, reduced-rank, cca", "'lasso'"):
            fitter.finish(method="lasso")


def sums_of(gaussian: Any, text: Any, x0: Any) -> text_module.Sums:
    fitter = ConditionalFitter(gaussian)
    fitter.update(text, x0, torch.zeros(len(text), dtype=torch.int64))
    return fitter._folds[0]
