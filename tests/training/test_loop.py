"""A run: it learns, equals a plain loop, saves what diffusers loads, and refuses what does not fit before any work."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from job import CLASSES, open_all, settings

from onbrand.core.prior import Prior
from onbrand.models.pipeline import load, trained_start_in
from onbrand.options.generate import SamplingSettings
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.training.batches import Batches
from onbrand.training.export import describe_start, save_model
from onbrand.training.loop import train
from onbrand.training.state import load_state, settings_of, total_batch_size
from worlds import predict, raises


def weights_of(pipe: Any) -> Any:
    return [weight.detach().clone() for weight in pipe.unet.parameters()]


def log_of(out: Any) -> Any:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_overfits_eight_images(home: Any, tmp_path: Path) -> None:
    options = {"max_train_steps": 60, "train_batch_size": 8, "learning_rate": 1e-2, "caption_dropout_rate": 0.0}
    losses = [step.loss for step in train(*open_all(home), settings(**options), tmp_path)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def adafactor(weights: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(weights, lr=1e-3, scale_parameter=False, relative_step=False, weight_decay=1.0)


def prodigy(weights: Any) -> Any:
    """As in diffusers' DreamBooth script; its step is 1e-6 at first, and lr makes it 1e-3."""
    package = pytest.importorskip("prodigyopt")
    options = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    return package.Prodigy(weights, lr=1e3, weight_decay=1.0, **options)


@pytest.mark.parametrize(
    ("name", "lr", "make"),
    [
        ("adamw", 1e-3, lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=1.0)),
        ("adafactor", 1e-3, adafactor),
        ("prodigy", 1e3, prodigy),
    ],
)
def test_without_offset_it_is_a_plain_diffusers_loop(home: Any, tmp_path: Path, name: Any, lr: Any, make: Any) -> None:
    """Three steps of the optimiser on DDIMScheduler's own add_noise, with the run's draws: the same weights."""
    pipe, records, store, prior = open_all(home)
    config = settings(max_train_steps=3, start="noise", optimizer=name, learning_rate=lr, adam_weight_decay=1.0)
    unet, batches = copy.deepcopy(pipe.unet), Batches(pipe, store.look_up(records), store, None, config, 1000)
    unet.set_attn_processor(AttnProcessor())  # the unfused one, as on a CPU: Adam makes rounding visible
    optimizer = make(unet.parameters())
    for step in range(3):
        batch = batches(range(4 * step, 4 * step + 4))
        x_t = pipe.scheduler.add_noise(batch.x0, batch.noise, batch.timesteps)
        loss = F.mse_loss(predict(unet, x_t, batch.timesteps, batch.hidden, batch.pooled), batch.noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
    for _ in train(pipe, records, store, None, config, tmp_path):
        pass
    for mine, plain in zip(weights_of(pipe), unet.parameters(), strict=True):
        torch.testing.assert_close(mine, plain.detach(), rtol=1e-5, atol=1e-6)


def test_the_folder_tells_the_run(home: Any, tmp_path: Path) -> None:
    course = {"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 2}
    config = settings(max_train_steps=6, gain="constant", start_timestep=500, checkpointing_steps=2, **course)
    steps = list(train(*open_all(home), config, tmp_path))
    assert [step.step for step in steps] == list(range(1, 7))
    lines = log_of(tmp_path)
    assert [line["loss"] for line in lines] == [step.loss for step in steps]
    assert all(line["loss_inside"] is None or line["loss_inside"] > 0 for line in lines)
    rates = [1e-3 * (s / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / 4))) for s in range(6)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    raw = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert raw.pop("schema") == 2 and raw == settings_of(config)
    assert settings(**raw | {"target_modules": tuple(raw["target_modules"])}) == config
    assert sorted(os.listdir(tmp_path / "state")) == ["step-00000004", "step-00000006"]
    record = trained_start_in(tmp_path)
    assert (record["gain"], record["start_timestep"]) == ("constant", 500)


@pytest.mark.slow
def test_what_is_saved_loads_without_onbrand(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    for _ in train(pipe, records, store, prior, settings(max_train_steps=2), tmp_path):
        pass
    model = load(tmp_path)
    for mine, theirs in zip(weights_of(pipe), weights_of(model), strict=True):
        assert torch.equal(mine, theirs)
    assert trained_start_in(tmp_path) == {
        "schema": 2,
        "gain": "window",
        "start": "mean",
        "k": 0,
        "start_timestep": 950,
        "prior": prior.fingerprint,
    }
    assert Prior.load(tmp_path / "model" / "onbrand" / "prior.safetensors").fingerprint == prior.fingerprint
    code = (
        "import sys; sys.modules['onbrand'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)\n"
        "print(pipe('product photo', num_inference_steps=1, output_type='np').images.shape)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, timeout=600
    )
    assert process.stdout.strip().endswith("(1, 16, 16, 3)"), process.stderr


def test_plain_training_saves_no_window(home: Any, tmp_path: Path) -> None:
    for _ in train(*open_all(home), settings(max_train_steps=1, start="noise"), tmp_path):
        pass
    assert trained_start_in(tmp_path) is None


def test_the_running_mean_is_diffusers_and_is_what_is_saved(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    config = settings(max_train_steps=5, learning_rate=1e-2, ema_decay=0.3, validation_steps=5)
    shadow, last, validations = None, None, []
    run = train(pipe, records, store, prior, config, tmp_path, lambda pipe, step: validations.append(weights_of(pipe)))
    for step in run:
        last = weights_of(pipe)
        decay = min(0.3, step.step / (9 + step.step)) if step.step > 1 else 0.0
        before = shadow or last
        shadow = [decay * old + (1 - decay) * new for old, new in zip(before, last, strict=True)]
    for weight, validation, mean, raw in zip(weights_of(load(tmp_path)), validations[0], shadow, last, strict=True):
        torch.testing.assert_close(weight, mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(weight, validation), "validation sees what would be saved"
        assert raw.numel() < 16 or not torch.equal(weight, raw)


def test_accumulation_and_checkpointing_change_the_memory_not_the_result(home: Any, tmp_path: Path) -> None:
    results = {}
    two = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    for name, engine in {"one": {}, "two": two, "again": {"gradient_checkpointing": True}}.items():
        pipe, *rest = open_all(home)
        config = settings(max_train_steps=3, learning_rate=1e-3, adam_epsilon=1e-3, **engine)
        losses = [step.loss for step in train(pipe, *rest, config, tmp_path / name)]
        results[name] = losses, weights_of(pipe)
        pipe.unet.disable_gradient_checkpointing()
    for name in ("two", "again"):
        assert results[name][0] == pytest.approx(results["one"][0], rel=1e-5)
        for one, other in zip(results["one"][1], results[name][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_bf16_is_near_full_precision(home: Any, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        pipe, *rest = open_all(home)
        config = settings(max_train_steps=2, mixed_precision=precision)
        losses[precision] = [step.loss for step in train(pipe, *rest, config, tmp_path / precision)]
        assert next(pipe.unet.parameters()).dtype == torch.float32
    assert losses["bf16"] != losses["no"] and losses["bf16"] == pytest.approx(losses["no"], rel=0.02)


def test_validation_images_come_from_the_same_start_and_change_nothing(home: Any, tmp_path: Path) -> None:
    plain, config = (settings(max_train_steps=4, start="pca", validation_steps=every) for every in (0, 2))
    pipe, records, store, prior = open_all(home)
    losses = [step.loss for step in train(pipe, records, store, prior, plain, tmp_path / "plain")]
    after, images = weights_of(pipe), {}
    trained = describe_start(config, 950)
    requests = [Request(f"{name} 1", seed) for seed, name in enumerate(CLASSES)]

    def show(pipe: Any, step: Any) -> None:
        samples = sample(
            pipe, prior, requests, SamplingSettings(start="pca", num_inference_steps=20, batch_size=2), trained
        )
        images[step] = torch.stack([image.latents for image in samples])
        torch.randn(7)

    pipe, *_ = open_all(home)
    assert [s.loss for s in train(pipe, records, store, prior, config, tmp_path / "shown", show)] == losses
    assert all(torch.equal(one, other) for one, other in zip(after, weights_of(pipe), strict=True))
    assert list(images) == [2, 4] and not torch.equal(images[2], images[4])


def test_a_tracker_gets_every_step(home: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for _ in train(*open_all(home), settings(max_train_steps=2, report_to="tensorboard"), tmp_path):
        pass
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = [path for path in tmp_path.rglob("events.out*") if path.stat().st_size > 200][:1]
    events = EventAccumulator(str(file.parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_kept(home: Any, tmp_path: Path) -> None:
    config = settings(max_train_steps=20, learning_rate=1e15, max_grad_norm=None, checkpointing_steps=50)
    with raises("diverged", tmp_path, "has no state", "output_dir", "learning_rate"):
        for _ in train(*open_all(home), config, tmp_path):
            pass
    assert not (tmp_path / "state").exists()
    list(train(*open_all(home), settings(max_train_steps=1, learning_rate=1e-6), tmp_path / "mended"))
    with raises("training", tmp_path / "state", "checkpointing_steps"):
        save_model(*open_all(home)[:1], None, config, tmp_path)


def test_weights_that_are_no_numbers_are_in_no_state(home: Any, tmp_path: Path) -> None:
    """The last step's loss is finite, and what it makes of the weights is not."""
    config = settings(max_train_steps=2, learning_rate=1e-3, max_grad_norm=None, checkpointing_steps=1)
    pipe, *rest = open_all(home)
    steps = train(pipe, *rest, config, tmp_path)
    next(steps)
    pipe.unet.conv_out.weight.register_hook(lambda gradient: gradient * float("nan"))
    with raises("diverged", "weights are not finite after step 2", f"the last state in {tmp_path} is of step 1"):
        next(steps)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000001"]


def test_before_any_step_no_learning_rate_is_blamed(home: Any, tmp_path: Path) -> None:
    pipe, *rest = open_all(home)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with raises("diverged", "the loss is nan at step 1", "another model") as caught:
        next(train(pipe, *rest, settings(), tmp_path))
    assert "learning_rate" not in str(caught.value)


def other_prior(prior: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return Prior(prior.gaussians, replace(prior.provenance, **fields), prior.text)


@pytest.mark.parametrize(
    ("config", "change", "values"),
    [
        (settings(), lambda p, prior: (p, None), ("training", "start mean", "a prior", "none")),
        (settings(start_timestep=1000), None, ("training", "start_timestep", "0..999", 1000)),
        (settings(start="pca", k=4), None, ("value", "3 components", "k = 4")),
        (settings(), lambda p, prior: (p, other_prior(prior, vae="0" * 64)), ("prior", "vae", "0" * 64)),
        (
            settings(),
            lambda p, prior: (p, other_prior(prior, scaling_factor=1.0)),
            ("prior", "scaling_factor 1.0", lambda p: p.vae.config.scaling_factor),
        ),
        (
            settings(start="text"),
            lambda p, prior: (p, other_prior(prior, text_encoder="1" * 64)),
            ("prior", "text_encoder", "1" * 64, "start mean"),
        ),
        (
            settings(start="text"),
            lambda p, prior: (p, Prior(prior.gaussians, prior.provenance)),
            ("training", "start text", "'figure photo', 'product photo'"),
        ),
        (
            settings(),
            lambda p, prior: (p, Prior({CLASSES[0]: prior.gaussians[CLASSES[0]]}, prior.provenance)),
            ("prior", "'figure photo'", "'product photo'"),
        ),
        (settings(), lambda p, prior: (p.to(torch.bfloat16), prior), ("training", "in float32", "bfloat16")),
        (settings(mixed_precision="fp16"), None, ("training", "mixed_precision fp16", "GPU")),
        (settings(report_to="dvclive"), None, ("training", "report_to", "dvclive")),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    home: Any, tmp_path: Path, config: Any, change: Any, values: Any
) -> None:
    pipe, records, store, prior = open_all(home)
    if change:
        pipe, prior = change(pipe, prior)
    with raises(*(value(pipe) if callable(value) else value for value in values)):
        train(pipe, records, store, prior, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "package"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")])
def test_an_optimiser_that_is_not_installed_is_named_before_any_work(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, package: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with raises("option", f"optimizer {name}", f"pip install {package}"):
        train(*open_all(home), settings(optimizer=name, learning_rate=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scheduler_without_a_start_is_refused_and_the_start_is_the_live_schedulers(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    for _ in train(pipe, records, store, prior, settings(max_train_steps=1, gain="constant"), tmp_path / "trailing"):
        pass
    assert trained_start_in(tmp_path / "trailing")["start_timestep"] == 999
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with raises("scheduler", "FlowMatchEulerDiscreteScheduler", "flow matching"):
        train(pipe, records, store, prior, settings(), tmp_path / "flow")


def test_the_batch_is_what_one_part_of_a_step_holds(home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As diffusers counts it: a step sees train_batch_size x gradient_accumulation_steps images, one after another,
    and what is recorded is that number."""
    calls, make = [], Batches.__call__
    monkeypatch.setattr(Batches, "__call__", lambda self, positions: calls.append(positions) or make(self, positions))
    config = settings(max_train_steps=2, train_batch_size=3, gradient_accumulation_steps=2)
    assert total_batch_size(config, 1) == 6 and total_batch_size(config, 4) == 24
    list(train(*open_all(home), config, tmp_path))
    assert [list(positions) for positions in calls] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert load_state(tmp_path / "state").settings["total_batch_size"] == 6


def test_a_network_taught_to_predict_v_is_trained_as_one_that_always_did(home: Any, tmp_path: Path) -> None:
    """The same steps to the bit, from the same weights; the saved model says it, and where its start is."""
    pipe, records, store, prior = open_all(home)
    config = settings(max_train_steps=3, gain="constant", prediction_type="v_prediction")
    steps = list(train(pipe, records, store, prior, config, tmp_path / "taught"))
    other = open_all(home)[0]
    scheduler_options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, **scheduler_options)
    other_steps = list(train(other, records, store, prior, replace(config, prediction_type=None), tmp_path / "always"))
    assert [step.loss for step in steps] == [step.loss for step in other_steps]
    plain = list(train(*open_all(home), replace(config, prediction_type=None), tmp_path / "plain"))
    assert [step.loss for step in plain] != [step.loss for step in other_steps]
    scheduler = DiffusionPipeline.from_pretrained(tmp_path / "taught" / "model").scheduler
    assert {name: scheduler.config[name] for name in scheduler_options} == scheduler_options
    assert trained_start_in(tmp_path / "taught")["start_timestep"] == 999
    for options in ({"method": "lora"}, {"method": "controlnet"}):
        with raises("option", "prediction_type", f"got v_prediction and method {options['method']}"):
            settings(prediction_type="v_prediction", **options)
