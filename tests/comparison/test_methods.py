"""Methods by name: what each one's training and start are, and what is said of a name that means nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from onbrand.comparison.compare import by_number
from onbrand.comparison.jobs import Trials
from onbrand.comparison.methods import USUAL, CompareConfig, read_method
from onbrand.options.train import LossConfig

CONFIG = CompareConfig(fine_tuning=600, sampling=20, guidance=2.0, lr=1e-4)


def read(name: str):
    return read_method(name, CONFIG)


def test_the_papers_rows() -> None:
    plain, mean, window = read("plain/noise"), read("plain/mean"), read("mean-window/mean")
    assert (plain.training.config.offset, plain.start.start) == ("none", "noise")
    assert plain.training.config == mean.training.config and mean.start.start == "mean"
    assert (window.training.config.offset, window.training.config.gain) == ("mean", "window")
    assert window.training.config.steps == 600 and window.start.steps == 20 and window.start.guidance == 2.0
    assert read("stock/mean").training.config is None
    projected, sampled = read("pca3-window/pca3").training.config, read("pca16-sampled-window/pca16").training.config
    assert (projected.offset, projected.k, projected.draw) == ("pca", 3, "projected")
    assert (sampled.k, sampled.draw) == (16, "sampled") and read("pca3-window/pca3").start.k == 3
    assert read("plain/image3@held").start.k == 3 and read("plain/image3@held").requests == "held"


def test_rivals_and_ours() -> None:
    assert read("offset-noise/noise").training.config.loss.noise_offset == 0.1
    assert read("plain/noise").training.config.loss.noise_offset == 0
    assert read("plain/leak").start.start == "pca" and read("plain/leak-dct").prior == "leak-dct"
    assert read("plain/text-cca").prior == "cca" and read("plain/text").prior == ""
    zero = read("zero-constant/zero")
    assert (zero.training.config.offset, zero.training.prior, zero.start.start, zero.prior) == ("mean", "zero") * 2
    assert read("plain/noise+pasted").pasted and not read("plain/noise").pasted
    assert read("mean-window/mean+handoff").start.handoff and read("plain/text+drawn").start.residual


def test_looks_and_priors_of_few_photos() -> None:
    looking = read("plain/mean-few50+zeromean+look2")
    assert (looking.start.look_ahead, looking.start.start, looking.prior) == (2, "mean", "few50")
    assert looking.words == "class mean, prior of 50 photos a class, noise of zero mean, 2 looks ahead"
    assert read("plain/text-few5").prior == "few5" and read("plain/text-few5").start.look_ahead == 0
    loose = read("plain/mean+look1+unprojected").start
    assert (loose.look_ahead, loose.look_ahead_projection) == (1, False)
    for wrong in ("plain/noise-few5", "plain/mean-few0", "plain/mean+look0", "plain/text-rr-few5", "plain/mean-few"):
        with pytest.raises(ValueError, match="a start is one of|a start's options are"):
            read(wrong)


def test_options() -> None:
    training = read("mean-constant:300:seed2:t999/mean").training
    assert (training.config.steps, training.config.seed, training.config.first) == (300, 2, 999)
    assert training.words.endswith(", 300 steps, seed 2, from t = 999")
    one = read("text-constant:v:300/text").training
    assert (one.schedule, one.base, one.config.steps) == ("v", "text-constant-v", 300)
    assert [read(f"{name}/noise").training.schedule for name in ("zero-snr", "plain")] == ["zero-snr", ""]
    low = read("mean-constant:lora8:lr0.003:100/mean").training.config
    assert (low.method, low.lora.rank, low.optim.lr, low.steps) == ("lora", 8, 0.003, 100)
    assert {"to_q", "ff.net.2", "conv1"} <= set(low.lora.targets)
    assert "conv1" not in read("mean-constant:lora8-linear/mean").training.config.lora.targets
    few = read("mean-constant:lora8-attention/mean").training.config.lora.targets
    assert few == ("to_q", "to_k", "to_v", "to_out.0")
    control = read("mean-constant:controlnet/mean").training.config
    assert control.method == "controlnet" and control.controlnet.unet
    assert read("mean-constant/mean").training.config.method == "full"
    start = read("mean-constant/mean+8+unipc+trailing+g1.5").start
    assert (start.steps, start.scheduler, start.spacing) == (8, "UniPCMultistepScheduler", "trailing")
    assert start.guidance == 1.5 and start.eta == 0 and read("mean-constant/mean+eta0.5").start.eta == 0.5


def test_a_training_keeps_the_name_that_it_had_before_there_were_more_settings() -> None:
    fitted = SimpleNamespace(fingerprint="f" * 8)
    trials = Trials("photos", "model", Path("out"), None, None, None, None, {}, {}, {}, fitted, "w" * 8)
    for name, folder in {
        "plain:300/noise": "plain-f3fc251b4fd7-300",
        "mean-window:300/mean": "mean-window-2b5497a143b3-300",
        "text-constant/text": "text-constant-5a9dfd3e030d-600",
    }.items():
        assert trials.run_of(read(name).training) == Path("out", "runs", folder), "as of version 0.1"
    training = read("plain/noise").training
    other = replace(training, config=replace(training.config, loss=LossConfig(input_perturbation=0.1)))
    assert trials.run_of(other) != trials.run_of(training)


def test_a_row_keeps_the_name_that_it_had_before_there_were_looks(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}\n")
    fitted, asked = SimpleNamespace(fingerprint="f" * 8), {"": tmp_path / "p.jsonl"}
    trials = Trials(
        "photos", "model", Path("out"), None, None, None, None, asked, {"": Path("brand")}, {}, fitted, "w" * 8
    )
    for name, folder in {
        "plain:300/noise": "plain-300_noise-225bcac8e44e",
        "stock/text+zeromean": "stock_text+zeromean-dd4a14fe9db5",
    }.items():
        assert trials.pictures_of(read(name)).name == folder
    assert trials.pictures_of(read("stock/text+zeromean+look1")).name != folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean", "a method is TRAINING/START"),
        ("means-window/mean", "a training is one of stock, plain"),
        ("plain/average", "a start is one of noise, mean"),
        ("plain/mean3", "a start is one of noise"),
        ("plain/leak-rr", "a start is one of noise"),
        ("plain:fast/mean", "a training's options are steps"),
        ("stock:300/mean", "a training's options are steps"),
        ("plain:lora8:controlnet/mean", "one thing learns"),
        ("plain:controlnet:lora8/mean", "one thing learns"),
        ("plain/mean+overlay", "train with :controlnet"),
        ("plain/mean+0", "a start's options are handoff"),
        ("plain/mean+heun", "a start's options are handoff"),
    ],
)
def test_other_names_are_refused_with_what_there_is(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(name)


def test_the_usual_ones_exist() -> None:
    assert [read(name).name for name in USUAL.split(",")] == USUAL.split(",")


def test_what_differs_in_a_number_of_steps_alone_is_a_curve() -> None:
    names = ["plain:100/mean@few", "plain:300/mean@few", "plain/mean@few", "mean-window:300/mean@few", "plain/mean",
             "plain/mean+8", "plain/mean+8+unipc", "plain/mean+4+unipc", "stock/mean"]  # fmt: skip
    found = by_number([read(name) for name in names])
    assert found == {
        "fine-tuning steps": {
            "plain/mean@few": {100: "plain:100/mean@few", 300: "plain:300/mean@few", 600: "plain/mean@few"}
        },
        "sampling steps": {"plain/mean": {8: "plain/mean+8", 20: "plain/mean"}},
        "sampling steps, unipc": {"plain/mean+unipc": {4: "plain/mean+4+unipc", 8: "plain/mean+8+unipc"}},
    }
