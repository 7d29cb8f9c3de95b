"""The held-out loss: the same triples at every step, by the weights that would be saved, and training as without it."""

import copy
from dataclasses import replace

import pytest
import torch
from job import COUNT, open_all, settings

from onbrand.models.denoiser import full
from onbrand.options.train import LogConfig, TrainConfig
from onbrand.training import rng, validation
from onbrand.training.batches import Batches
from onbrand.training.export import finish
from onbrand.training.loop import train
from onbrand.training.objective import make_objective
from onbrand.training.validation import check_held, fixed, held_out, loss_on

EVERY = {"optim": {"lr": 1e-2, "ema": 0.5}, "loss": {"dropout": 0.5, "input_perturbation": 0.1}}


def split(home):
    """(pipe, records trained on, store, prior), and the records held out."""
    pipe, records, store, prior = open_all(home)
    return (pipe, records[:5], store, prior), records[5:]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_is_bit_for_bit_what_it_is_without(home, tmp_path, method):
    weights, losses = [], []
    for every in (0, 2):
        (pipe, *rest), kept = split(home)
        config = settings(steps=5, method=method, log={"held_every": every}, **EVERY)
        steps = list(train(pipe, *rest, config, tmp_path / str(every), held=kept if every else ()))
        weights.append([weight.detach().clone() for weight in pipe.unet.parameters()])
        losses.append([step.loss for step in steps])
    assert losses[0] == losses[1] and all(map(torch.equal, *weights))
    assert [step.held is not None for step in steps] == [False, True, False, True, False]


def test_it_is_the_plain_loss_of_the_saved_weights_on_the_same_triples(home, tmp_path):
    """Written out: the captions whole, no perturbation, 64 triples of three pictures, one at a time."""
    given, kept = split(home)
    config = settings(steps=4, log={"held_every": 2}, **EVERY)
    steps = list(train(*given, config, tmp_path, held=kept))
    pipe, _, store, prior = given
    finish(pipe, prior, config, tmp_path)
    plain = settings(steps=4, seed=validation.SEED, loss={"dropout": 0.0})
    batches = Batches(pipe, store.look_up(kept), store, prior, plain, 1000)
    objective, denoiser = make_objective(pipe.scheduler, config), full(pipe).eval()
    with torch.no_grad():
        each = [objective(denoiser, batches([i])).total.item() for i in range(64)]
    assert steps[3].held == pytest.approx(sum(each) / 64, rel=1e-5)
    assert steps[1].held != pytest.approx(steps[3].held, rel=1e-4)
    # resumed, the same numbers: in the log of a run made longer
    given, kept = split(home)
    list(train(*given, settings(steps=2, log={"held_every": 2}, **EVERY), tmp_path / "parts", held=kept))
    resumed = list(train(*given, config, tmp_path / "parts", held=kept))
    assert [step.held for step in resumed] == [None, steps[3].held]


def test_another_seed_and_another_batch_are_measured_alike(home):
    (pipe, records, store, prior), kept = split(home)
    pictures, objective = store.look_up(kept), make_objective(pipe.scheduler, settings())
    found = []
    for seed, size in ((0, 4), (5, 7)):
        batches = fixed(pipe, pictures, store, prior, settings(seed=seed), 1000, size)
        assert sum(len(batch.x0) for batch in batches) == 64
        found.append(loss_on(batches, objective, full(pipe).eval()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_no_gradient_is_left_behind(home):
    (pipe, records, store, prior), kept = split(home)
    denoiser = full(pipe)
    batches = fixed(pipe, store.look_up(kept), store, prior, settings(), 1000, 8)
    seen = []
    before = copy.deepcopy(list(pipe.unet.parameters()))
    loss_on(batches, make_objective(pipe.scheduler, settings()), lambda *x: seen.append(out := denoiser(*x)) or out)
    assert len(seen) == 8 and not any(out.requires_grad for out in seen)
    assert all(weight.grad is None for weight in pipe.unet.parameters())
    assert all(map(torch.equal, before, pipe.unet.parameters()))


def test_of_many_pictures_64_are_taken(home, monkeypatch):
    (_, records, store, _), kept = split(home)
    pictures, trained = store.look_up(kept), store.look_up(records)
    assert held_out(pictures, trained).keys == pictures.keys
    monkeypatch.setattr(validation, "COUNT", 2)
    few = held_out(pictures, trained)
    assert (
        few.keys == [pictures.keys[i] for i in sorted(rng.order(validation.SEED, 3, range(2)))] and len(few.used) == 2
    )


def test_what_is_trained_on_is_not_held_out(home):
    (_, records, store, _), kept = split(home)
    with pytest.warns(UserWarning, match="1 of 4 held-out pictures are trained on too"):
        found = held_out(store.look_up([records[4], *kept]), store.look_up(records))
    assert found.keys == store.look_up(kept).keys


def test_what_cannot_be_held_out_is_refused_before_any_work(home, tmp_path):
    (pipe, records, store, prior), kept = split(home)
    looked = settings(log={"held_every": 2})
    with pytest.raises(ValueError, match="not trained on; of 2 given, 2 are trained on"):
        train(pipe, records, store, prior, looked, tmp_path / "run", held=records[:2])
    with pytest.raises(ValueError, match="log.held_every 2 alone: give both"):
        train(pipe, records, store, prior, looked, tmp_path / "run")
    with pytest.raises(ValueError, match="pictures alone: give both"):
        train(pipe, records, store, prior, settings(), tmp_path / "run", held=kept)
    strange = [replace(kept[0], class_name="landscape")]
    with pytest.raises(ValueError, match="'landscape' is no class"):
        train(pipe, records, store, prior, looked, tmp_path / "run", held=strange)
    assert not (tmp_path / "run").exists() and COUNT == 8
    check_held(TrainConfig(log=LogConfig(held_every=1)), True)
