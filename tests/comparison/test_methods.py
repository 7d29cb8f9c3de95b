"""Methods by name: what each one's training and start are, and what is said of a name that means nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from onbrand.comparison.compare import by_number
from onbrand.comparison.jobs import Trials
from onbrand.comparison.methods import read_file, read_method, read_methods
from onbrand.options.compare import DEFAULT_METHODS, CompareSettings
from worlds import raises

CONFIG = CompareSettings(max_train_steps=600, num_inference_steps=20, guidance_scale=2.0, learning_rate=1e-4)


def read(name: str) -> Any:
    return read_method(name, CONFIG)


def test_the_papers_rows() -> None:
    plain, mean, window = read("plain/noise"), read("plain/mean"), read("mean-window/mean")
    assert (plain.training.config.start, plain.start.start) == ("noise", "noise")
    assert plain.training.config == mean.training.config and mean.start.start == "mean"
    assert (window.training.config.start, window.training.config.gain) == ("mean", "window")
    assert window.training.config.max_train_steps == 600
    assert (window.start.num_inference_steps, window.start.guidance_scale) == (20, 2.0)
    assert read("stock/mean").training.config is None
    pca3, pca16 = read("pca3-window/pca3").training.config, read("pca16-sampled-window/pca16").training.config
    assert (pca3.start, pca3.k, pca3.draw) == ("pca", 3, "projected")
    assert (pca16.k, pca16.draw) == (16, "sampled") and read("pca3-window/pca3").start.k == 3
    assert read("plain/image3@held").start.k == 3 and read("plain/image3@held").requests == "held"


def test_baselines_and_ours() -> None:
    assert read("offset-noise/noise").training.config.noise_offset == 0.1
    assert read("plain/noise").training.config.noise_offset == 0
    assert read("plain/leak").start.start == "pca" and read("plain/leak-dct").prior == "leak-dct"
    assert read("plain/text-cca").prior == "cca" and read("plain/text").prior == ""
    zero = read("zero-constant/zero")
    assert (zero.training.config.start, zero.training.prior, zero.start.start, zero.prior) == ("mean", "zero") * 2
    assert read("plain/noise+pasted").paste and not read("plain/noise").paste
    assert read("mean-window/mean+handoff").start.handoff and read("plain/text+drawn").start.residual


def test_looks_and_priors_of_few_photos() -> None:
    method = read("plain/mean-few50+zeromean+look2")
    assert (method.start.look_ahead, method.start.start, method.prior) == (2, "mean", "few50")
    assert method.words == "class mean, prior of 50 photos a class, noise of zero mean, 2 looks ahead"
    assert read("plain/text-few5").prior == "few5" and read("plain/text-few5").start.look_ahead == 0
    whole = read("plain/mean+look1+unprojected").start
    assert (whole.look_ahead, whole.look_ahead_projection) == (1, False)
    for part in ("noise-few5", "mean-few0", "text-rr-few5", "mean-few"):
        with raises("method", f"method 'plain/{part}'", "noise, mean", f"got {part!r}"):
            read(f"plain/{part}")
    with raises("method", "method 'plain/mean+look0'", "+look<N>", "got '+look0'"):
        read("plain/mean+look0")


def test_options() -> None:
    training = read("mean-constant:300:seed2:t999/mean").training
    config = training.config
    assert (config.max_train_steps, config.seed, config.start_timestep) == (300, 2, 999)
    assert training.words.endswith(", 300 steps, seed 2, from t = 999")
    one = read("text-constant:v:300/text").training
    assert (one.schedule, one.base, one.config.max_train_steps) == ("v", "text-constant-v", 300)
    assert [read(f"{name}/noise").training.schedule for name in ("zero-snr", "plain")] == ["zero-snr", ""]
    low = read("mean-constant:lora8:lr0.003:100/mean").training.config
    assert (low.method, low.rank, low.learning_rate, low.max_train_steps) == ("lora", 8, 0.003, 100)
    assert {"to_q", "ff.net.2", "conv1"} <= set(low.target_modules)
    assert "conv1" not in read("mean-constant:lora8-linear/mean").training.config.target_modules
    few = read("mean-constant:lora8-attention/mean").training.config.target_modules
    assert few == ("to_q", "to_k", "to_v", "to_out.0")
    control = read("mean-constant:controlnet/mean").training.config
    assert control.method == "controlnet" and control.train_unet
    assert read("mean-constant/mean").training.config.method == "full"
    start = read("mean-constant/mean+8+unipc+trailing+g1.5").start
    assert (start.num_inference_steps, start.scheduler) == (8, "UniPCMultistepScheduler")
    assert start.timestep_spacing == "trailing" and start.guidance_scale == 1.5
    assert start.eta == 0 and read("mean-constant/mean+eta0.5").start.eta == 0.5


def test_a_training_keeps_the_name_that_it_had_before_there_were_more_settings() -> None:
    prior = SimpleNamespace(fingerprint="f" * 8)
    trials = Trials("photos", "model", Path("out"), None, None, None, None, {}, {}, {}, prior, "w" * 8)
    for name, folder in {
        "plain:300/noise": "plain-f3fc251b4fd7-300",
        "mean-window:300/mean": "mean-window-2b5497a143b3-300",
        "text-constant/text": "text-constant-5a9dfd3e030d-600",
        "offset-noise:seed2/noise": "offset-noise-c0c2122669d5-600",
        "pca3-sampled-window:t940/pca3": "pca3-sampled-window-f06ef245e4ca-600",
        "mean-constant:v/mean": "mean-constant-v-d60f72bda6d6-600",
        "plain:lora8-linear:lr0.001/mean": "plain-f24ef4f746f8-600",
        "plain:lora16-attention/mean": "plain-ecca8e921024-600",
        "mean-constant:controlnet/mean": "mean-constant-f9b801ea9933-600",
    }.items():
        assert trials.run_of(read(name).training) == Path("out", "runs", folder), "as of version 0.1"
    training = read("plain/noise").training
    other = replace(training, config=replace(training.config, input_perturbation=0.1))
    assert trials.run_of(other) != trials.run_of(training)


def test_a_row_keeps_the_name_that_it_had_before_there_were_looks(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}\n")
    prior, prompts = SimpleNamespace(fingerprint="f" * 8), {"": tmp_path / "p.jsonl"}
    trials = Trials(
        "photos", "model", Path("out"), None, None, None, None, prompts, {"": Path("brand")}, {}, prior, "w" * 8
    )
    for name, folder in {
        "plain:300/noise": "plain-300_noise-225bcac8e44e",
        "plain/mean+g3+unipc+8": "plain_mean+g3+unipc+8-26abbdd9c435",
        "plain/noise+pasted": "plain_noise+pasted-8882dddb9534",
        "mean-window/mean+handoff+trailing": "mean-window_mean+handoff+trailing-9fa7d497bf97",
        "mean-constant:controlnet/mean+overlay": "mean-constant-controlnet_mean+overlay-61a78e56ba96",
        "stock/mean+look2+unprojected": "stock_mean+look2+unprojected-e5d2d3a5c2ec",
        "stock/text+zeromean": "stock_text+zeromean-dd4a14fe9db5",
    }.items():
        assert trials.images_of(read(name)).name == folder
    assert trials.images_of(read("stock/text+zeromean+look1")).name != folder


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mean", ("TRAINING/START",)),
        ("means-window/mean", ("stock, plain", "'means-window'")),
        ("plain/average", ("noise, mean", "'average'")),
        ("plain/mean3", ("noise, mean", "'mean3'")),
        ("plain/leak-rr", ("noise, mean", "'leak-rr'")),
        ("plain:fast/mean", (":lora<N>", "':fast'")),
        ("stock:300/mean", ("none without", "':300'")),
        ("plain:lora8:controlnet/mean", ("set method", "':controlnet'")),
        ("plain:controlnet:lora8/mean", ("set method", "':lora8'")),
        ("plain/mean+overlay", ("overlay", "with :controlnet")),
        ("plain/mean+0", ("+handoff", "'+0'")),
        ("plain/mean+heun", ("+handoff", "'+heun'")),
    ],
)
def test_other_names_are_refused_with_what_there_is(name: str, values: tuple[str, ...]) -> None:
    with raises("method", f"method {name!r}", *values):
        read(name)


def test_the_default_ones_exist() -> None:
    assert tuple(read(name).name for name in DEFAULT_METHODS) == DEFAULT_METHODS


OWN = """
ours:
  train: {start: mean, gain: constant}
  generate: {start: mean, zero_mean: true}
low-rank:
  words: a LoRA of the paper's start
  train: {start: pca, k: 16, gain: window, method: lora, rank: 16, target_modules: [to_q, to_v], learning_rate: 1e-3}
  generate: {start: pca, k: 16, num_inference_steps: 8, guidance_scale: 3, prior: few50}
untrained:
  generate: {start: text, look_ahead: 1, mixed: null}
"""
"""A file of methods; its last has a key that no setting has."""


def file_of(folder: Path, content: str | dict[str, Any]) -> Path:
    file = folder / "own.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return file


def trials_in(folder: Path) -> Trials:
    """Trials of one set of prompts, few like the others, and priors by their names."""
    (folder / "p.jsonl").write_text("{}\n")
    prompts = {"": folder / "p.jsonl", "few": folder / "p.jsonl"}
    priors = {name: Path(name or "brand") for name in ("", "zero", "leak-dct", "few50")}
    prior: Any = SimpleNamespace(fingerprint="f" * 8)
    return Trials("photos", "model", folder, None, None, None, None, prompts, priors, {}, prior, "w" * 8)


def test_a_file_of_ones_own_methods(tmp_path: Path) -> None:
    file = file_of(tmp_path, OWN.replace(", mixed: null", ""))
    ours, low, untrained = read_file(file, CONFIG)
    assert (ours.name, ours.training.config, ours.start.zero_mean) == (
        "ours", read("mean-constant/mean").training.config, True,
    )  # fmt: skip
    config = low.training.config
    assert config and (config.rank, config.k, config.learning_rate, config.max_train_steps) == (16, 16, 1e-3, 600)
    assert config.target_modules == ("to_q", "to_v") and low.training.base == "pca16-window"
    assert (low.start.num_inference_steps, low.start.guidance_scale, low.prior, low.training.prior) == (
        8,
        3,
        "few50",
        "",
    )
    assert (low.training.words, low.words[:11]) == ("a LoRA of the paper's start", "start: pca,")
    assert untrained.training.config is None and untrained.training.words == "no training"
    names = [method.name for method in read_methods(["plain/mean,stock/mean plain/noise", str(file)], CONFIG)]
    assert names == ["plain/mean", "stock/mean", "plain/noise", "ours", "low-rank", "untrained"]
    assert [method.name for method in read_methods(file, CONFIG)] == names[3:]


def test_the_guide_s_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "compare.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [method.name for method in read_file(file_of(tmp_path, block), CONFIG)] == ["ours", "our-lora", "untrained"]


EQUAL = {
    "plain/noise": {"train": {"start": "noise"}, "generate": {"start": "noise"}},
    "stock/text+zeromean+look1": {"generate": {"start": "text", "zero_mean": True, "look_ahead": 1}},
    "mean-window:300/mean+handoff@few": {
        "train": {"start": "mean", "gain": "window", "max_train_steps": 300},
        "generate": {"start": "mean", "handoff": True},
        "prompts": "few",
    },
    "pca16-sampled-window/pca16+unipc+8": {
        "train": {"start": "pca", "k": 16, "gain": "window", "draw": "sampled"},
        "generate": {"start": "pca", "k": 16, "scheduler": "UniPCMultistepScheduler", "num_inference_steps": 8},
    },
    "mean-constant:lora8-attention:lr0.001/mean-few50+g3": {
        "train": {
            "start": "mean", "method": "lora", "rank": 8, "learning_rate": "1e-3", "gain": "constant",
            "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        },
        "generate": {"start": "mean", "prior": "few50", "guidance_scale": 3},
    },
    "text-constant:v/text": {"train": {"start": "text"}, "generate": {"start": "text"}, "schedule": "v"},
    "zero-snr/noise+pasted": {
        "train": {"start": "noise"}, "generate": {"start": "noise"}, "schedule": "zero-snr", "paste": True,
    },
    "zero-constant:controlnet/zero+overlay": {
        "train": {"start": "mean", "prior": "zero", "method": "controlnet", "train_unet": True},
        "generate": {"start": "mean", "prior": "zero", "overlay": True},
    },
    "offset-noise:seed2/leak-dct": {
        "train": {"start": "noise", "noise_offset": 0.1, "seed": 2}, "generate": {"start": "pca", "prior": "leak-dct"},
    },
}  # fmt: skip
"""Presets, and what a file says that is the same."""


@pytest.mark.parametrize("name", EQUAL)
def test_a_method_of_a_preset_s_settings_is_the_same_work(name: str, tmp_path: Path) -> None:
    (own,) = read_file(file_of(tmp_path, {"mine": EQUAL[name]}), CONFIG)
    preset, trials = read(name), trials_in(tmp_path)
    if preset.training.config is not None:
        assert trials.run_of(own.training) == trials.run_of(preset.training)
    alone = trials.images_of(own)
    assert alone.name.startswith("mine-") and trials.images_of(preset) == alone, "one folder in one comparison"
    other = trials_in(tmp_path)
    images = other.images_of(preset)
    assert images.name.rpartition("-")[2] == alone.name.rpartition("-")[2] and images != alone
    images.mkdir(parents=True)
    (images.parent / f"{images.name}-unpasted").mkdir()
    assert trials_in(tmp_path).images_of(own) == images, "what is finished is found again"


def test_a_training_that_is_no_preset_has_a_folder_of_its_own(tmp_path: Path) -> None:
    trials, start = trials_in(tmp_path), {"generate": {"start": "mean"}}
    runs = set()
    for more in (
        {"train": {}}, {"train": {"snr_gamma": 5}}, {"train": {"prior": "zero"}}, {"train": {}, "schedule": "v"},
        {"train": {"noise_offset": 0.2, "start": "noise"}}, {"train": {"prior": "few50"}, "schedule": "v"},
        {"train": {"early_stopping_patience": 2, "validation_steps": 5}},
        {"train": {"early_stopping_patience": 3, "validation_steps": 5}},
    ):  # fmt: skip
        (own,) = read_file(file_of(tmp_path, {"mine": start | more}), CONFIG)
        runs.add(trials.run_of(own.training).name)
    assert len(runs) == 8 and all(run.startswith("own-") for run in runs)


def test_a_training_whose_schedule_counts_its_steps_goes_on_from_none(tmp_path: Path) -> None:
    own = {
        f"{schedule}-{steps}": {"train": {"start": "mean", "lr_scheduler": schedule, "max_train_steps": steps}}
        for schedule in ("cosine", "constant") for steps in (100, 200)
    }  # fmt: skip
    trainings = [method.training for method in read_file(file_of(tmp_path, own), CONFIG)]
    trials = trials_in(tmp_path)
    assert [trials.shorter(training, trainings) for training in trainings] == [None, None, None, trainings[2]]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (OWN, ("method 'untrained'", "generate", "'mixed'")),
        ("- a", ("NAME: {train: ..., generate: ...}",)),
        ("", ("NAME: {train: ..., generate: ...}",)),
        ("a: {", ("YAML",)),
        ({"a": 3}, ("train, generate", "got 3")),
        ({"a/b": {}}, ("letters, digits, _, - and .",)),
        ({"real": {}}, ("real or autoencoder",)),
        ({3: {}}, ("letters, digits, _, - and .",)),
        ({"a": {"trian": {}}}, ("'trian'", "train, generate", "mean train?")),
        ({"a": {"prior": "zero"}}, ("prior", "train and of generate")),
        ({"a": {"train": "plain"}}, ("`onbrand train`", "'plain'")),
        ({"a": {"train": {"learning_rat": 1}}}, ("train", "'learning_rat'", "mean learning_rate?")),
        ({"a": {"train": {"rank": "many"}}}, ("train.rank", "whole number", "'many'")),
        ({"a": {"train": {"rank": True}}}, ("train.rank", "whole number", "True")),
        ({"a": {"train": {"learning_rate": "fast"}}}, ("train.learning_rate", "'fast'")),
        ({"a": {"train": {"gain": "half"}}}, ("train.gain", "window, constant", "'half'")),
        ({"a": {"train": {"timestep_range": [1]}}}, ("train.timestep_range", "list of 2 or null", "[1]")),
        ({"a": {"train": {"target_modules": "to_q"}}}, ("train.target_modules", "list", "'to_q'")),
        ({"a": {"train": {"learning_rate": -1}}}, ("train: learning_rate", "above 0", "-1.0")),
        ({"a": {"train": {"prior": "half"}}}, ("train.prior", "zero, few50", "'half'")),
        ({"a": {"generate": {"eta": 2}}}, ("generate: eta", "[0, 1]", "2.0")),
        ({"a": {"train": {"start": "mean"}, "generate": {"overlay": True}}}, ("overlay", "method controlnet")),
        ({"a": {"schedule": "v"}}, ("schedule", "'v'", "no train")),
        ({"a": {"train": {}, "schedule": "w"}}, ("schedule", "zero-snr, small-alpha, v", "'w'")),
        ({"a": {"paste": "yes"}}, ("paste", "true or false", "'yes'")),
    ],
)
def test_a_file_s_mistake_names_file_method_and_key(content: Any, values: tuple[str, ...], tmp_path: Path) -> None:
    file = file_of(tmp_path, content)
    where = f"{file}: method {next(iter(content))!r}: " if isinstance(content, dict) else str(file)
    with raises("method", *values) as caught:
        read_methods([str(file)], CONFIG)
    assert str(caught.value).startswith(where)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with raises("method", tmp_path / "none.yaml", "YAML"):
        read_methods([f"plain/mean,{tmp_path / 'none.yaml'}"], CONFIG)


def test_yaml_s_own_readings_are_mended(tmp_path: Path) -> None:
    file = file_of(tmp_path, "a: {train: {mixed_precision: no, learning_rate: 1e-4, timestep_range: [5, 900]}}")
    config = read_file(file, CONFIG)[0].training.config
    assert config and (config.mixed_precision, config.learning_rate, config.timestep_range) == ("no", 1e-4, (5, 900))


def test_what_differs_in_a_number_of_steps_alone_is_a_curve() -> None:
    names = ["plain:100/mean@few", "plain:300/mean@few", "plain/mean@few", "mean-window:300/mean@few", "plain/mean",
             "plain/mean+8", "plain/mean+8+unipc", "plain/mean+4+unipc", "stock/mean"]  # fmt: skip
    curves = by_number([read(name) for name in names])
    assert curves == {
        "fine-tuning steps": {
            "plain/mean@few": {100: "plain:100/mean@few", 300: "plain:300/mean@few", 600: "plain/mean@few"}
        },
        "sampling steps": {"plain/mean": {8: "plain/mean+8", 20: "plain/mean"}},
        "sampling steps, unipc": {"plain/mean+unipc": {4: "plain/mean+4+unipc", 8: "plain/mean+8+unipc"}},
    }
