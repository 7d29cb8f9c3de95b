"""A run: it learns, equals a plain loop, saves what diffusers loads, and refuses what does not fit before any work."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from job import CLASSES, open_all, settings

from onbrand.core.prior import Prior
from onbrand.models.pipeline import load, offset_config
from onbrand.options.generate import GenerateConfig
from onbrand.options.train import TrainConfig
from onbrand.sampling.requests import Request
from onbrand.sampling.sampler import sample
from onbrand.training.batches import Batches
from onbrand.training.export import describe, finish
from onbrand.training.loop import train


def weights_of(pipe):
    return [weight.detach().clone() for weight in pipe.unet.parameters()]


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_overfits_eight_pictures(home, tmp_path):
    given = {"steps": 60, "batch": 8, "optim": {"lr": 1e-2}, "loss": {"dropout": 0.0}}
    losses = [step.loss for step in train(*open_all(home), settings(**given), tmp_path)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def adafactor(weights):
    from transformers.optimization import Adafactor

    return Adafactor(weights, lr=1e-3, scale_parameter=False, relative_step=False, weight_decay=1.0)


def prodigy(weights):
    """As in diffusers' DreamBooth script; its step is 1e-6 at first, and lr makes it 1e-3."""
    package = pytest.importorskip("prodigyopt")
    told = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    return package.Prodigy(weights, lr=1e3, weight_decay=1.0, **told)


@pytest.mark.parametrize(
    ("name", "lr", "make"),
    [
        ("adamw", 1e-3, lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=1.0)),
        ("adafactor", 1e-3, adafactor),
        ("prodigy", 1e3, prodigy),
    ],
)
def test_without_offset_it_is_a_plain_diffusers_loop(home, tmp_path, name, lr, make):
    """Three steps of the optimiser on DDIMScheduler's own add_noise, with the run's draws: the same weights."""
    pipe, records, store, prior = open_all(home)
    config = settings(steps=3, offset="none", optim={"name": name, "lr": lr, "weight_decay": 1.0})
    unet, batches = copy.deepcopy(pipe.unet), Batches(pipe, store.look_up(records), store, None, config, 1000)
    unet.set_attn_processor(AttnProcessor())  # the unfused one, as on a CPU: Adam makes rounding visible
    optimizer = make(unet.parameters())
    for step in range(3):
        batch = batches(range(4 * step, 4 * step + 4))
        x_t = pipe.scheduler.add_noise(batch.x0, batch.noise, batch.timesteps)
        loss = F.mse_loss(unet(x_t, batch.timesteps, batch.hidden).sample, batch.noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
    for _ in train(pipe, records, store, None, config, tmp_path):
        pass
    for mine, plain in zip(weights_of(pipe), unet.parameters(), strict=True):
        torch.testing.assert_close(mine, plain.detach(), rtol=1e-5, atol=1e-6)


def test_the_folder_tells_the_run(home, tmp_path):
    optim = {"lr": 1e-3, "schedule": "cosine", "warmup": 2}
    config = settings(steps=6, optim=optim, gain="constant", first=500, log={"checkpoint_every": 2})
    steps = list(train(*open_all(home), config, tmp_path))
    assert [step.step for step in steps] == list(range(1, 7))
    lines = log_of(tmp_path)
    assert [line["loss"] for line in lines] == [step.loss for step in steps]
    assert all(line["loss_inside"] is None or line["loss_inside"] > 0 for line in lines)
    rates = [1e-3 * (s / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / 4))) for s in range(6)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    raw = yaml.safe_load((tmp_path / "config.yaml").read_text())
    raw["optim"]["betas"] = tuple(raw["optim"]["betas"])
    raw["lora"]["targets"] = tuple(raw["lora"]["targets"])
    assert raw["controlnet"] == {"unet": False}
    assert settings(**raw) == config
    assert sorted(os.listdir(tmp_path / "state")) == ["step-00000004", "step-00000006"]
    assert offset_config(tmp_path)["gain"] == "constant" and offset_config(tmp_path)["start"] == 500


def test_what_is_saved_loads_without_onbrand(home, tmp_path):
    pipe, records, store, prior = open_all(home)
    for _ in train(pipe, records, store, prior, settings(steps=2), tmp_path):
        pass
    saved = load(tmp_path)
    for mine, loaded in zip(weights_of(pipe), weights_of(saved), strict=True):
        assert torch.equal(mine, loaded)
    assert offset_config(tmp_path) == {
        "gain": "window",
        "kind": "mean",
        "k": 0,
        "first": 950,
        "prior": prior.fingerprint,
    }
    assert Prior.load(tmp_path / "model" / "onbrand" / "prior.safetensors").fingerprint == prior.fingerprint
    code = (
        "import sys; sys.modules['onbrand'] = None\n"
        "from diffusers import StableDiffusionPipeline\n"
        "pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)\n"
        "print(pipe('product photo', num_inference_steps=1, output_type='np').images.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip().endswith("(1, 16, 16, 3)"), done.stderr


def test_plain_training_saves_no_window(home, tmp_path):
    for _ in train(*open_all(home), settings(steps=1, offset="none"), tmp_path):
        pass
    assert offset_config(tmp_path) is None


def test_the_running_mean_is_diffusers_and_is_what_is_saved(home, tmp_path):
    pipe, records, store, prior = open_all(home)
    config = settings(steps=5, optim={"lr": 1e-2, "ema": 0.3}, log={"validate_every": 5})
    shadow, last, seen = None, None, []
    run = train(pipe, records, store, prior, config, tmp_path, lambda pipe, step: seen.append(weights_of(pipe)))
    for step in run:
        last = weights_of(pipe)
        decay = min(0.3, step.step / (9 + step.step)) if step.step > 1 else 0.0
        before = shadow or last
        shadow = [decay * old + (1 - decay) * new for old, new in zip(before, last, strict=True)]
    for saved, shown, mean, raw in zip(weights_of(load(tmp_path)), seen[0], shadow, last, strict=True):
        torch.testing.assert_close(saved, mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(saved, shown), "validation sees what would be saved"
        assert raw.numel() < 16 or not torch.equal(saved, raw)


def test_accumulation_and_checkpointing_change_the_memory_not_the_result(home, tmp_path):
    results = {}
    for name, engine in {"one": {}, "two": {"accumulation": 2}, "again": {"gradient_checkpointing": True}}.items():
        pipe, *rest = open_all(home)
        config = settings(steps=3, optim={"lr": 1e-3, "eps": 1e-3}, engine=engine)
        losses = [step.loss for step in train(pipe, *rest, config, tmp_path / name)]
        results[name] = losses, weights_of(pipe)
        pipe.unet.disable_gradient_checkpointing()
    for name in ("two", "again"):
        assert results[name][0] == pytest.approx(results["one"][0], rel=1e-5)
        for one, other in zip(results["one"][1], results[name][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_bf16_is_near_full_precision(home, tmp_path):
    from accelerate.state import AcceleratorState

    losses = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        pipe, *rest = open_all(home)
        config = settings(steps=2, engine={"precision": precision})
        losses[precision] = [step.loss for step in train(pipe, *rest, config, tmp_path / precision)]
        assert next(pipe.unet.parameters()).dtype == torch.float32
    assert losses["bf16"] != losses["no"] and losses["bf16"] == pytest.approx(losses["no"], rel=0.02)


def test_validation_pictures_come_from_the_same_start_and_change_nothing(home, tmp_path):
    plain, shown = (settings(steps=4, offset="pca", log={"validate_every": every}) for every in (0, 2))
    pipe, records, store, prior = open_all(home)
    losses = [step.loss for step in train(pipe, records, store, prior, plain, tmp_path / "plain")]
    after, pictures = weights_of(pipe), {}
    trained = describe(shown, 950)
    requests = [Request(f"{name} 1", seed) for seed, name in enumerate(CLASSES)]

    def show(pipe, step):
        made = sample(pipe, prior, requests, GenerateConfig(start="pca", steps=20, batch=2), trained)
        pictures[step] = torch.stack([picture.latents for picture in made])
        torch.randn(7)

    pipe, *_ = open_all(home)
    assert [s.loss for s in train(pipe, records, store, prior, shown, tmp_path / "shown", show)] == losses
    assert all(torch.equal(one, other) for one, other in zip(after, weights_of(pipe), strict=True))
    assert list(pictures) == [2, 4] and not torch.equal(pictures[2], pictures[4])


def test_a_tracker_gets_every_step(home, tmp_path):
    pytest.importorskip("tensorboard")
    for _ in train(*open_all(home), settings(steps=2, log={"tracker": "tensorboard"}), tmp_path):
        pass
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = [path for path in tmp_path.rglob("events.out*") if path.stat().st_size > 200][:1]
    events = EventAccumulator(str(file.parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_kept(home, tmp_path):
    config = settings(steps=20, optim={"lr": 1e30, "clip": None}, log={"checkpoint_every": 50})
    with pytest.raises(FloatingPointError, match="smaller optim.lr"):
        for _ in train(*open_all(home), config, tmp_path):
            pass
    assert not (tmp_path / "state").exists()
    with pytest.raises(ValueError, match="train longer"):
        finish(*open_all(home)[:1], None, config, tmp_path)


def other_prior(prior, **changed):
    from dataclasses import replace

    return Prior(prior.gaussians, replace(prior.provenance, **changed), prior.text)


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (settings(), lambda p, prior: (p, None), "offset mean needs a prior; got none"),
        (settings(first=1000), None, "0..999; got 1000"),
        (settings(offset="pca", k=4), None, "fitted with 3 components: got k = 4"),
        (settings(), lambda p, prior: (p, other_prior(prior, vae="0" * 64)), "fitted with vae 000"),
        (settings(), lambda p, prior: (p, other_prior(prior, scaling_factor=1.0)), "scaling_factor 1.0"),
        (
            settings(offset="text"),
            lambda p, prior: (p, Prior(prior.gaussians, prior.provenance)),
            "regression from text",
        ),
        (
            settings(),
            lambda p, prior: (p, Prior({CLASSES[0]: prior.gaussians[CLASSES[0]]}, prior.provenance)),
            "'figure photo' is no class",
        ),
        (settings(), lambda p, prior: (p.to(torch.bfloat16), prior), "its weights in float32; these are bfloat16"),
        (settings(engine={"precision": "fp16"}), None, "fp16 needs a GPU"),
        (settings(log={"tracker": "dvclive"}), None, "known to accelerate and installed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(home, tmp_path, config, change, said):
    pipe, records, store, prior = open_all(home)
    if change:
        pipe, prior = change(pipe, prior)
    with pytest.raises(ValueError) as error:
        train(pipe, records, store, prior, config, tmp_path / "run")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "package"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")])
def test_an_optimiser_that_is_not_installed_is_named_before_any_work(home, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"optim.name {name} .* pip install {package}"):
        train(*open_all(home), settings(optim={"name": name, "lr": 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scheduler_without_a_start_is_refused_and_the_start_is_the_live_schedulers(home, tmp_path):
    pipe, records, store, prior = open_all(home)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    for _ in train(pipe, records, store, prior, settings(steps=1, gain="constant"), tmp_path / "trailing"):
        pass
    assert offset_config(tmp_path / "trailing")["start"] == 999
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="flow"):
        train(pipe, records, store, prior, settings(), tmp_path / "flow")


def test_the_batch_counts_all_parts():
    with pytest.raises(ValueError, match="multiple of engine.accumulation"):
        TrainConfig(batch=5, engine=type(TrainConfig().engine)(accumulation=2))


def test_a_network_taught_to_predict_v_is_trained_as_one_that_always_did(home, tmp_path):
    """The same steps to the bit, from the same weights; the saved model says it, and where its start is."""
    pipe, records, store, prior = open_all(home)
    config = settings(steps=3, gain="constant", prediction="v_prediction")
    taught = list(train(pipe, records, store, prior, config, tmp_path / "taught"))
    other = open_all(home)[0]
    kind = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config, **kind)
    always = list(train(other, records, store, prior, replace(config, prediction=None), tmp_path / "always"))
    assert [step.loss for step in taught] == [step.loss for step in always]
    plain = list(train(*open_all(home), replace(config, prediction=None), tmp_path / "plain"))
    assert [step.loss for step in plain] != [step.loss for step in always]
    scheduler = StableDiffusionPipeline.from_pretrained(tmp_path / "taught" / "model", safety_checker=None).scheduler
    assert {name: scheduler.config[name] for name in kind} == kind
    assert offset_config(tmp_path / "taught")["start"] == 999
    for given in ({"method": "lora"}, {"method": "controlnet"}):
        with pytest.raises(ValueError, match="learnt by the whole UNet"):
            settings(prediction="v_prediction", **given)
