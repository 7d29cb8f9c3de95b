"""The held-out loss: the same triples at every step, by the weights that would be saved, and training as without it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from job import COUNT, open_all, settings

from onbrand.models.denoiser import full
from onbrand.options.train import TrainSettings
from onbrand.training import rng, validation
from onbrand.training.batches import Batches
from onbrand.training.export import save_model
from onbrand.training.loop import train
from onbrand.training.objective import make_objective
from onbrand.training.validation import check_validation_data, mean_loss, validation_batches, validation_images
from worlds import raises

EVERY = {"learning_rate": 1e-2, "ema_decay": 0.5, "caption_dropout_rate": 0.5, "input_perturbation": 0.1}


def split(home: Any) -> Any:
    """(pipe, records trained on, store, prior), and the records held out."""
    pipe, records, store, prior = open_all(home)
    return (pipe, records[:5], store, prior), records[5:]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_is_bit_for_bit_what_it_is_without(home: Any, tmp_path: Path, method: Any) -> None:
    weights, losses = [], []
    for every in (0, 2):
        (pipe, *rest), validation_records = split(home)
        config = settings(max_train_steps=5, method=method, validation_loss_steps=every, **EVERY)
        steps = list(
            train(pipe, *rest, config, tmp_path / str(every), validation_records=validation_records if every else ())
        )
        weights.append([weight.detach().clone() for weight in pipe.unet.parameters()])
        losses.append([step.loss for step in steps])
    assert losses[0] == losses[1] and all(map(torch.equal, *weights))
    assert [step.validation_loss is not None for step in steps] == [False, True, False, True, False]


def test_it_is_the_plain_loss_of_the_saved_weights_on_the_same_triples(home: Any, tmp_path: Path) -> None:
    """Written out: the captions whole, no perturbation, 64 triples of three images, one at a time."""
    parts, validation_records = split(home)
    config = settings(max_train_steps=4, validation_loss_steps=2, **EVERY)
    steps = list(train(*parts, config, tmp_path, validation_records=validation_records))
    pipe, _, store, prior = parts
    save_model(pipe, prior, config, tmp_path)
    plain = settings(max_train_steps=4, seed=validation.SEED, caption_dropout_rate=0.0)
    batches = Batches(pipe, store.look_up(validation_records), store, prior, plain, 1000)
    objective, denoiser = make_objective(pipe.scheduler, config), full(pipe).eval()
    with torch.no_grad():
        each = [objective(denoiser, batches([i])).total.item() for i in range(64)]
    assert steps[3].validation_loss == pytest.approx(sum(each) / 64, rel=1e-5)
    assert steps[1].validation_loss != pytest.approx(steps[3].validation_loss, rel=1e-4)
    # resumed, the same numbers: in the log of a run made longer
    parts, validation_records = split(home)
    list(
        train(
            *parts,
            settings(max_train_steps=2, validation_loss_steps=2, **EVERY),
            tmp_path / "parts",
            validation_records=validation_records,
        )
    )
    other_steps = list(train(*parts, config, tmp_path / "parts", validation_records=validation_records))
    assert [step.validation_loss for step in other_steps] == [None, steps[3].validation_loss]


def test_another_seed_and_another_batch_are_measured_alike(home: Any) -> None:
    (pipe, records, store, prior), validation_records = split(home)
    images, objective = store.look_up(validation_records), make_objective(pipe.scheduler, settings())
    losses = []
    for seed, size in ((0, 4), (5, 7)):
        batches = validation_batches(pipe, [(store, images)], prior, settings(seed=seed, train_batch_size=size), 1000)
        assert sum(len(batch.x0) for batch in batches) == 64
        losses.append(mean_loss(batches, objective, full(pipe).eval()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_gradient_is_left_behind(home: Any) -> None:
    (pipe, records, store, prior), validation_records = split(home)
    denoiser = full(pipe)
    batches = validation_batches(
        pipe, [(store, store.look_up(validation_records))], prior, settings(train_batch_size=8), 1000
    )
    outputs = []
    before = copy.deepcopy(list(pipe.unet.parameters()))
    mean_loss(
        batches,
        make_objective(pipe.scheduler, settings()),
        lambda *x, **beside: outputs.append(out := denoiser(*x, **beside)) or out,
    )
    assert len(outputs) == 8 and not any(out.requires_grad for out in outputs)
    assert all(weight.grad is None for weight in pipe.unet.parameters())
    assert all(map(torch.equal, before, pipe.unet.parameters()))


def test_of_many_images_64_are_taken(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, records, store, _), validation_records = split(home)
    images, training_images = store.look_up(validation_records), [store.look_up(records)]
    assert validation_images([(store, images)], training_images)[0][1].keys == images.keys
    monkeypatch.setattr(validation, "COUNT", 2)
    ((_, few),) = validation_images([(store, images)], training_images)
    assert few.keys == [images.keys[i] for i in sorted(rng.order(validation.SEED, 3, range(2)))] and len(few.used) == 2


def test_what_is_trained_on_is_not_held_out(home: Any) -> None:
    (_, records, store, _), validation_records = split(home)
    with pytest.warns(UserWarning, match="1 of 4 validation images are trained on too"):
        candidates = [(store, store.look_up([records[4], *validation_records]))]
        ((_, images),) = validation_images(candidates, [store.look_up(records)])
    assert images.keys == store.look_up(validation_records).keys


def test_what_cannot_be_held_out_is_refused_before_any_work(home: Any, tmp_path: Path) -> None:
    (pipe, records, store, prior), validation_records = split(home)
    config = settings(validation_loss_steps=2)
    with raises("training", "validation_data", "of 2 given", "2 are trained"):
        train(pipe, records, store, prior, config, tmp_path / "run", validation_records=records[:2])
    with raises("training", "validation_data", "validation_loss_steps 2"):
        train(pipe, records, store, prior, config, tmp_path / "run")
    with raises("training", "validation_loss_steps", "got validation_data"):
        train(pipe, records, store, prior, settings(), tmp_path / "run", validation_records=validation_records)
    other_records = [replace(validation_records[0], class_name="landscape")]
    with raises("prior", "'landscape'", "'product photo', 'figure photo'"):
        train(pipe, records, store, prior, config, tmp_path / "run", validation_records=other_records)
    assert not (tmp_path / "run").exists() and COUNT == 8
    check_validation_data(TrainSettings(validation_loss_steps=1), True)
