"""Random numbers as functions of the position: the same in any grouping, whole epochs, the right distributions."""

import torch
from scipy import stats

from onbrand.training import rng


def test_every_epoch_holds_every_record_once_in_another_order() -> None:
    first, second = rng.order(0, 50, range(50)), rng.order(0, 50, range(50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50)) and first != rng.order(1, 50, range(50))


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = rng.normal(3, "noise", range(8), (4, 2, 2))
    parts = [rng.normal(3, "noise", [i], (4, 2, 2)) for i in (7, 2)]
    assert torch.equal(torch.cat(parts), whole[[7, 2]])
    assert torch.equal(rng.timesteps(3, range(8), 1000)[5:], rng.timesteps(3, range(5, 8), 1000))
    assert rng.order(3, 10, range(25))[17:] == rng.order(3, 10, range(17, 25))


def test_purposes_and_seeds_and_samples_are_independent() -> None:
    draws = [rng.normal(s, p, [i], (1000,))[0] for s in (0, 1) for p in ("noise", "posterior") for i in (0, 1)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(8)
    assert correlation.abs().max() < 5 / 1000**0.5


def test_distributions() -> None:
    times = rng.timesteps(0, range(4000), 1000)
    assert stats.chisquare(torch.bincount(times // 50, minlength=20)).pvalue > 1e-3
    assert int(times.min()) < 5 and int(times.max()) > 995
    assert stats.kstest(rng.uniform(0, "dropout", range(2000)), "uniform").pvalue > 1e-3
    assert stats.kstest(rng.normal(0, "noise", range(20), (200,)).flatten(), "norm").pvalue > 1e-3
