"""What a batch holds: latents drawn from their posteriors, the start of each kind, dropped captions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from job import CLASSES, COUNT, open_all, settings
from scipy import stats

from onbrand.models.pipeline import embed
from onbrand.training import rng
from onbrand.training.batches import Batches
from onbrand.training.captions import Captions, remove_captions


@pytest.fixture(scope="module")
def parts(home: Any) -> Any:
    pipe, records, store, prior = open_all(home)
    return pipe, store.look_up(records), store, prior


def batch_of(parts: Any, positions: Any = range(COUNT), **options: Any) -> Any:
    pipe, images, store, prior = parts
    return Batches(pipe, images, store, prior, settings(**options), 1000)(positions)


def chosen_of(parts: Any, positions: Any = range(COUNT)) -> Any:
    return [parts[1].used[i] for i in rng.order(0, COUNT, positions)]


def empty_of(parts: Any) -> Any:
    """Hidden states (1, L, E) of a caption that is dropped."""
    return embed(parts[0], [""])[0] * (not parts[0].config.get("force_zeros_for_empty_prompt"))


def test_latents_are_drawn_from_the_posterior_as_diffusers_draws_them(parts: Any) -> None:
    pipe, images, store, _ = parts
    order = rng.order(0, COUNT, range(COUNT))
    mean, logvar = store.get([images.keys[i] for i in order])
    posterior = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
    noise = (batch_of(parts).x0 / pipe.vae.config.scaling_factor - posterior.mean) / posterior.std
    again = (batch_of(parts, range(COUNT, 2 * COUNT)).x0).std()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1 and again > 0


def test_each_start_is_what_generation_would_have(parts: Any) -> None:
    prior, classes = parts[3], [record.class_name for record in chosen_of(parts)]
    assert set(classes) == set(CLASSES)
    mean = batch_of(parts, start="mean")
    assert torch.equal(mean.x_start, prior.mean(classes))
    batch = batch_of(parts, start="pca", k=2)
    torch.testing.assert_close(batch.x_start, prior.project(batch.x0, classes, 2))
    _, pooled = embed(parts[0], [record.text for record in chosen_of(parts)])
    text = batch_of(parts, start="text").x_start
    for i, name in enumerate(classes):
        torch.testing.assert_close(text[i : i + 1], prior.text[name].mean(prior.gaussians[name], pooled[i : i + 1]))
    assert torch.equal(batch_of(parts, start="noise").x_start, batch_of(parts, start="noise").x0)


def test_a_sampled_start_is_drawn_from_the_prior_and_knows_nothing_of_the_image(parts: Any) -> None:
    prior = parts[3]
    positions = range(80 * COUNT)
    batch = batch_of(parts, positions, start="pca", k=3, draw="sampled")
    name = CLASSES[0]
    here = torch.tensor([record.class_name == name for record in chosen_of(parts, positions)])
    gaussian = prior.gaussians[name]
    coordinates = gaussian.coordinates(batch.x_start[here])
    torch.testing.assert_close(coordinates.var(0), gaussian.variances, rtol=0.35, atol=0)
    torch.testing.assert_close(gaussian.place(coordinates), batch.x_start[here], atol=1e-4, rtol=0)
    own = gaussian.coordinates(batch.x0[here])
    correlation = torch.corrcoef(torch.cat([coordinates, own], dim=1).T)[:3, 3:]
    assert correlation.abs().max() < 0.25


@pytest.mark.parametrize("start", ["mean", "pca", "text"])
def test_a_dropped_caption_keeps_its_start(parts: Any, start: Any) -> None:
    with_captions = batch_of(parts, start=start, caption_dropout_rate=0.0)
    without_captions = batch_of(parts, start=start, caption_dropout_rate=1.0)
    assert torch.equal(with_captions.x_start, without_captions.x_start) and torch.equal(
        with_captions.noise, without_captions.noise
    )
    empty = empty_of(parts)
    torch.testing.assert_close(without_captions.hidden, empty.expand_as(without_captions.hidden))
    assert without_captions.pooled is None or not without_captions.pooled.any()
    full, _ = embed(parts[0], [record.text for record in chosen_of(parts)])
    torch.testing.assert_close(with_captions.hidden, full)
    assert not torch.allclose(full, empty.expand_as(full))


def test_captions_that_are_cut_are_warned_of_once(parts: Any) -> None:
    texts = [f"{number} {'x' * 40}" for number in range(100)]
    with pytest.warns(UserWarning, match="100 of 101 texts are longer than the tokenizer's 32 tokens") as caught:
        captions = Captions(parts[0], ["short", *texts[1:], texts[0]])
        captions(texts)
    assert len(caught) == 1


def test_captions_are_dropped_at_their_rate(parts: Any) -> None:
    positions = range(100 * COUNT)
    hidden = batch_of(parts, positions, caption_dropout_rate=0.25).hidden
    empty = empty_of(parts)
    share = (hidden - empty).abs().amax((1, 2)).lt(1e-5).float().mean()
    assert abs(share - 0.25) < 0.06


def test_mirrored_images_are_taken_half_the_time(parts: Any, tmp_path: Path) -> None:
    from job import lay

    lay(tmp_path / "flip", flip=True)
    pipe, records, store, prior = open_all(tmp_path / "flip", flip=True)
    mirror = (pipe, store.look_up(records), store, prior)
    positions = range(COUNT * 10)
    plain, both = batch_of(parts, positions).x0, batch_of(mirror, positions).x0
    same = (plain - both).flatten(1).abs().amax(1) < 1e-6
    assert 0.3 < same.float().mean() < 0.7


def test_the_same_batch_for_every_kind_of_training_but_for_the_start(parts: Any) -> None:
    none, mean = batch_of(parts, start="noise"), batch_of(parts, start="mean", gain="constant")
    assert torch.equal(replace(none, x_start=mean.x_start).noise, mean.noise)
    for name in ("x0", "noise", "timesteps", "hidden"):
        assert torch.equal(getattr(none, name), getattr(mean, name)), name


def test_offset_noise_shifts_whole_channels(parts: Any) -> None:
    plain = batch_of(parts, start="noise")
    offset = batch_of(parts, start="noise", noise_offset=0.1)
    difference = offset.noise - plain.noise
    assert difference.std((2, 3)).max() < 1e-6 and 0.05 < difference.std() < 0.2


def test_perturbation_is_another_noise_and_changes_nothing_else(parts: Any) -> None:
    plain, perturbation = batch_of(parts, range(80)), batch_of(parts, range(80), input_perturbation=0.1)
    assert plain.perturbation is None
    for name in ("x0", "x_start", "noise", "timesteps", "hidden"):
        assert torch.equal(getattr(plain, name), getattr(perturbation, name)), name
    xi = perturbation.perturbation.flatten() / 0.1
    assert abs(xi.mean()) < 0.02 and abs(xi.std() - 1) < 0.02
    for other in (plain.noise, plain.x0):
        assert abs(torch.corrcoef(torch.stack([xi, other.flatten()]))[0, 1]) < 0.02


def test_only_the_timesteps_asked_for_are_drawn_and_all_of_them_alike(parts: Any) -> None:
    timesteps = batch_of(parts, range(600), timestep_range=[990, 999]).timesteps
    counts = torch.bincount(timesteps, minlength=1000)
    assert counts[:990].sum() == 0 and stats.chisquare(counts[990:]).pvalue > 1e-3
    assert torch.equal(batch_of(parts, timestep_range=[0, 999]).timesteps, batch_of(parts).timesteps)


@pytest.mark.parametrize("shared", [True, False])
def test_captions_that_do_not_fit_in_memory_are_the_same_in_a_file(
    parts: Any, tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} shoes" for number in range(70)]
    folder = tmp_path if shared else None
    table, file = Captions(parts[0], texts), Captions(parts[0], texts, limit=0, folder=folder)
    for one, other in zip(table(texts[:3]), file(texts[:3]), strict=True):
        assert torch.equal(one, other) and one.is_contiguous() == other.is_contiguous()
    assert torch.equal(table.empty, file.empty)
    if shared:
        monkeypatch.setattr("onbrand.training.captions.whole_file", lambda *_: pytest.fail("it was there"))
        assert torch.equal(Captions(parts[0], texts, limit=0, folder=folder)(texts)[0], table(texts)[0])
        monkeypatch.undo()
        next(tmp_path.glob(".captions-*")).write_bytes(b"cut")
        assert torch.equal(Captions(parts[0], texts, limit=0, folder=folder)(texts)[0], table(texts)[0])
        assert len(list(tmp_path.glob(".captions-*"))) == 1
        remove_captions(tmp_path)
    assert not list(tmp_path.iterdir())
