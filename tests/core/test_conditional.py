"""Ridge, cross-validation and residual against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from onbrand.core import ConditionalFitter, Gaussian

N, E, K = 230, 9, 4


@pytest.fixture
def gaussian() -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(2 * 5 * 6, K, generator=generator))[0].T.contiguous()
    return Gaussian(torch.randn(2, 5, 6, generator=generator), components, torch.tensor([9.0, 4, 2, 1]), 30.0, N)


@pytest.fixture
def pairs(gaussian) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """text, x0, coordinates: three of the coordinates follow the text, less and less; the last one does not."""
    generator = torch.Generator().manual_seed(1)
    text = 0.5 + torch.randn(N, E, generator=generator) * torch.linspace(0.2, 3, E)
    y = text @ torch.randn(E, K, generator=generator) * torch.tensor([1.0, 0.5, 0.3, 0.0])
    y = y + torch.randn(N, K, generator=generator) * torch.tensor([1.0, 1.5, 2.0, 1.0]) + 0.3
    outside = torch.randn(N, 60, generator=generator)
    outside -= outside @ gaussian.components.T @ gaussian.components
    return text, gaussian.place(y) + outside.reshape(N, 2, 5, 6), y


def fit(gaussian: Gaussian, text: torch.Tensor, x0: torch.Tensor, alphas: tuple[float, ...], batch: int = 64):
    fitter = ConditionalFitter(gaussian)
    for rows in torch.arange(N).split(batch):
        fitter.update(text[rows], x0[rows], rows)
    return fitter.finish(alphas)


@pytest.mark.parametrize("alpha", [0.1, 10.0, 3000.0])
def test_ridge_and_its_r2_are_scikit_learns(gaussian, pairs, alpha):
    text, x0, y = pairs
    ours = fit(gaussian, text, x0, (alpha,))
    theirs = Ridge(alpha).fit(text.numpy(), y.numpy())
    np.testing.assert_allclose(ours.weight, theirs.coef_.T, atol=2e-4)
    whole = ours.intercept + (text - ours.text_mean) @ ours.weight
    np.testing.assert_allclose(whole, theirs.predict(text.numpy()), atol=1e-3)
    predicted = cross_val_predict(Ridge(alpha), text.numpy(), y.numpy(), cv=PredefinedSplit(np.arange(N) % 5))
    r2 = r2_score(y.numpy(), predicted, multioutput="raw_values")
    np.testing.assert_allclose(ours.r2, r2, atol=1e-4)
    np.testing.assert_allclose(ours.shrink, r2.clip(0, 1), atol=1e-4)
    given = gaussian.coordinates(ours.mean(gaussian, text))
    np.testing.assert_allclose(given, theirs.predict(text.numpy()) * r2.clip(0, 1), atol=1e-3)
    left = y.numpy() - predicted * r2.clip(0, 1)
    np.testing.assert_allclose(ours.residual, left.T @ left / N, atol=2e-3)


def test_the_ridge_is_chosen_by_error_out_of_fold(gaussian, pairs):
    text, x0, y = pairs
    alphas = (0.01, 1.0, 30.0, 1e3, 1e5)
    folds = PredefinedSplit(np.arange(N) % 5)
    errors = [np.square(cross_val_predict(Ridge(a), text, y, cv=folds) - y.numpy()).sum() for a in alphas]
    assert fit(gaussian, text, x0, alphas).alpha == alphas[int(np.argmin(errors))]


def test_text_that_says_nothing_gives_the_class_mean(gaussian, pairs):
    text, x0, _ = pairs
    unrelated = torch.randn(N, E, generator=torch.Generator().manual_seed(8))
    ours = fit(gaussian, unrelated, x0, (1.0, 1e2, 1e4))
    assert ours.r2.max() < 0.02
    moved = (ours.mean(gaussian, unrelated) - gaussian.mean).flatten(1).norm(dim=1)
    assert moved.max() < 0.05  # of a spread of 4
    coordinates = gaussian.coordinates(x0)
    np.testing.assert_allclose(ours.residual.diag(), coordinates.square().mean(0), rtol=0.02)
    assert (fit(gaussian, text, x0, (1.0,)).r2[:2] > 0.5).all()  # where it does say something, it is heard


def test_a_coordinate_without_r2_is_not_moved_at_all(gaussian, pairs):
    text, x0, _ = pairs
    ours = fit(gaussian, text, x0, (0.01,))
    assert ours.r2[3] < 0 and ours.shrink[3] == 0
    assert gaussian.coordinates(ours.mean(gaussian, text))[:, 3].abs().max() < 1e-5


def test_parts_merge_to_one_pass(gaussian, pairs):
    text, x0, _ = pairs
    whole = fit(gaussian, text, x0, (1.0, 10.0), batch=N)
    parts = [ConditionalFitter(gaussian) for _ in range(7)]
    for i in range(N):
        parts[i % 7].update(text[i : i + 1], x0[i : i + 1], [i])
    merged = parts[6].merge(parts[0])
    for part in parts[1:6]:
        merged = merged.merge(part)
    assert merged.count == N
    ours = merged.finish((1.0, 10.0))
    for name in ours.TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_draws_have_the_conditional_mean_and_the_residual(gaussian, pairs):
    text, x0, _ = pairs
    ours = fit(gaussian, text, x0, (1.0,))
    noise = torch.randn(20_000, K, generator=torch.Generator().manual_seed(2))
    drawn = gaussian.coordinates(ours.draw(gaussian, text[:1].expand(20_000, -1), noise))
    np.testing.assert_allclose(drawn.mean(0), gaussian.coordinates(ours.mean(gaussian, text[:1]))[0], atol=0.06)
    np.testing.assert_allclose(drawn.T.cov(), ours.residual, atol=0.12)


def test_wrong_input_is_refused(gaussian, pairs):
    text, x0, _ = pairs
    fitter = ConditionalFitter(gaussian)
    with pytest.raises(ValueError, match="go together"):
        fitter.update(text[:3], x0[:2], [0, 1, 2])
    with pytest.raises(ValueError, match="finite"):
        fitter.update(text[:2] * torch.nan, x0[:2], [0, 1])
    with pytest.raises(ValueError, match="two folds"):
        fitter.finish()
    fitter.update(text[:2], x0[:2], [0, 5])  # one fold twice
    with pytest.raises(ValueError, match="got 2 pictures in 1 folds"):
        fitter.finish()
    with pytest.raises(ValueError, match="one text encoder"):
        fitter.update(text[:2, :5], x0[:2], [0, 1])
    with pytest.raises(ValueError, match="alphas"):
        fit(gaussian, text, x0, (0.0,))
    bare = Gaussian(gaussian.mean, gaussian.components[:0], gaussian.variances[:0], 30.0, N)
    with pytest.raises(ValueError, match="needs components"):
        ConditionalFitter(bare)
    ours = fit(gaussian, text, x0, (1.0,))
    with pytest.raises(ValueError, match=r"\(B, 9\) here: got \(2, 5\)"):
        ours.mean(gaussian, text[:2, :5])
    with pytest.raises(ValueError, match=r"\(2, 4\): got \(2, 3\)"):
        ours.draw(gaussian, text[:2], torch.zeros(2, 3))
