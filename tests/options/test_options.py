"""Settings of every verb: each is of its type and in its range, a place is where a shell has it, none idles."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onbrand import cli
from onbrand.errors import quote
from onbrand.options import check, fit, generate, train
from onbrand.options._base import check_needs
from onbrand.options._verb import Verb, default
from onbrand.options.compare import CompareOptions
from onbrand.options.fit import FitOptions
from onbrand.options.generate import GenerateOptions, SamplingSettings
from onbrand.options.report import ReportOptions
from onbrand.options.train import TrainOptions, TrainSettings
from worlds import raises

NAN, INFINITY = float("nan"), float("inf")
LONG = 10**5000
FIELDS = [(one, field.name) for one in cli.VERBS for field in dataclasses.fields(one.options)]


def options_of(one: Verb[Any, Any, Any], **values: Any) -> Any:
    """A verb's options: what it must be given, and these values."""
    required = {
        field.name: {"format": "webui", "trainer": "kohya"}.get(field.name, "garments")
        for field in dataclasses.fields(one.options)
        if default(field) is dataclasses.MISSING
    }
    return one.options(**required | values)


@pytest.mark.parametrize(("one", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_no_setting_of_any_verb_takes_what_is_none_of_its_type(one: Verb[Any, Any, Any], name: str) -> None:
    for value in (
        object(),
        b"bytes",
        {1, 2},
        NAN,
        INFINITY,
        -INFINITY,
        1j,
        [[1]],
        {"a": object()},
        len,
        "\0",
        "\ud800",
    ):
        with raises("option", name):
            options_of(one, **{name: value})


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"num_inference_steps": 2.5}, ["num_inference_steps", "whole number", "got 2.5"]),
        ({"num_inference_steps": 10**30}, ["num_inference_steps", "64 bits"]),
        ({"num_inference_steps": 20.0}, ["num_inference_steps", "whole number", "got 20.0"]),
        ({"num_inference_steps": True}, ["num_inference_steps", "whole number", "got True"]),
        ({"num_inference_steps": "20"}, ["num_inference_steps", "whole number", "got '20'"]),
        ({"num_inference_steps": None}, ["num_inference_steps", "whole number", "got None"]),
        ({"batch_size": LONG}, ["batch_size", "64 bits", "too large"]),
        ({"batch_size": 10**20}, ["batch_size", "64 bits", "got 100000000000000000000"]),
        ({"k": -1, "start": "pca"}, ["k must", "at least 1", "got -1"]),
        ({"guidance_scale": NAN}, ["guidance_scale", "finite", "got nan"]),
        ({"guidance_scale": 1e308}, ["guidance_scale", "between -1e+15 and 1e+15", "got 1e+308"]),
        ({"guidance_scale": LONG}, ["guidance_scale", "finite", "too large"]),
        ({"eta": 1.5}, ["eta", [0, 1], "got 1.5"]),
        ({"residual": 1, "start": "text"}, ["residual", "True or False", "got 1"]),
        ({"zero_mean": "no"}, ["zero_mean", "True or False", "'no'"]),
        ({"start": 3}, ["start", "one of noise", "got 3"]),
        ({"scheduler": ""}, ["scheduler", "empty"]),
        ({"controlnet_conditioning_scale": ("a",)}, ["controlnet_conditioning_scale", "('a',)"]),
        ({"controlnet_conditioning_scale": (1.0, NAN)}, ["controlnet_conditioning_scale", "nan"]),
    ],
)
def test_sampling_says_what_a_setting_must_be(options: Any, values: Any) -> None:
    with raises("option", *values):
        SamplingSettings(**options)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"learning_rate": INFINITY}, ["learning_rate", "finite", "got inf"]),
        ({"learning_rate": -1e-4}, ["learning_rate", "above 0", "got -0.0001"]),
        ({"adam_beta1": 1.0}, ["adam_beta1", "at least 0 and below 1", "got 1.0"]),
        ({"adam_epsilon": -1.0}, ["adam_epsilon", "at least 0", "got -1.0"]),
        ({"max_grad_norm": 0}, ["max_grad_norm", "above 0", "got 0"]),
        ({"train_batch_size": -4}, ["train_batch_size", "at least 1", "got -4"]),
        ({"seed": 1.0}, ["seed", "whole number", "got 1.0"]),
        ({"timestep_range": (1, 2, 3)}, ["timestep_range", "2 values", "(1, 2, 3)"]),
        ({"timestep_range": 5}, ["timestep_range", "2 values", "got 5"]),
        ({"target_modules": ("to_q", ""), "method": "lora"}, ["target_modules", "empty"]),
        ({"target_modules": (3,), "method": "lora"}, ["target_modules", "a list, each a text", "(3,)"]),
        ({"report_to": ""}, ["report_to", "empty"]),
    ],
)
def test_training_says_what_a_setting_must_be(options: Any, values: Any) -> None:
    with raises("option", *values):
        TrainSettings(**options)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"k": -1}, ["k must", "at least 0", "got -1"]),
        ({"resolution": 0}, ["resolution", "at least 1", "got 0"]),
        ({"resolution": (64, 64, 64)}, ["resolution", "2 values", "(64, 64, 64)"]),
        ({"resolution": (64.0, 64)}, ["resolution", "whole number", "64.0"]),
        ({"split": ""}, ["split", "empty"]),
        ({"device": ""}, ["device", "empty"]),
        ({"images": ""}, ["images", "a file or a folder", "''"]),
        ({"images": Path("a\0b")}, ["images", "NUL"]),
        ({"output_dir": 3}, ["output_dir", "a path", "got 3"]),
        ({"output_dir": None}, ["output_dir", "a path", "got None"]),
    ],
)
def test_fit_says_what_a_setting_must_be(options: Any, values: Any) -> None:
    with raises("option", *values):
        FitOptions(**{"images": "p", "model": "m", "output_dir": "o"} | options)


def test_numbers_of_numpy_and_lists_are_what_they_say() -> None:
    """Python's own, which JSON and YAML hold; a whole number stays one, as results record it."""
    settings = SamplingSettings(num_inference_steps=np.int64(8), guidance_scale=np.float32(1.5), eta=0, start="mean")  # type: ignore[arg-type]
    assert [type(value) for value in (settings.num_inference_steps, settings.guidance_scale, settings.eta)] == [
        int, float, int,
    ]  # fmt: skip
    options = FitOptions("p", "m", "o", resolution=[64, 32])  # type: ignore[arg-type]
    assert options.resolution == (64, 32)
    one = GenerateOptions(model="m", output_dir="o", controlnet="net")  # type: ignore[arg-type]
    assert one.controlnet == ("net",), "one is a list of one"


PLACES = [
    (one, name)
    for one, name in FIELDS
    if "File" in str(one.options.__dataclass_fields__[name].type) or name == "images"
]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home folder."""
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("one", "name"), PLACES, ids=lambda value: getattr(value, "__name__", value))
def test_the_home_folder_is_meant_by_a_tilde_in_every_place(one: Verb[Any, Any, Any], name: str, home: Path) -> None:
    value, expected = BESIDE.get(name, ("~/a", "{home}/a"))
    needs = {"attributes": {"against": "b"}, "model": {"prior": "b"}, "validation_data": {"validation_loss_steps": 1}}
    others = needs.get(name, {})
    known = {field.name for field in dataclasses.fields(one.options)}
    options = options_of(one, **{key: item for key, item in others.items() if key in known}, **{name: value})
    assert str(getattr(options, name)) == str(expected).replace("{home}", str(home))


BESIDE: dict[str, tuple[Any, Any]] = {
    "images": (Path("~/a"), Path("{home}/a")),
    "controlnet": (("~/a", Path("~")), ("{home}/a", Path("{home}"))),
    "output_file": ("~/a.html", "{home}/a.html"),
    "methods": (["~/a.yaml", "stock/mean"], ("{home}/a.yaml", "stock/mean")),
    "prompt_sets": ({"~": "~/a"}, {"~": "{home}/a"}),
}
"""Places of several paths, and one that is no text."""


def test_a_tilde_elsewhere_is_a_letter(home: Path) -> None:
    options = FitOptions("photos~", "a/~/b", "~nobody-of-this-name/x")
    assert (options.images, options.model, options.output_dir) == ("photos~", "a/~/b", "~nobody-of-this-name/x")
    assert GenerateOptions(model="m", output_dir="o", prompt="~ 20 shoes").prompt == "~ 20 shoes"


def test_every_place_of_a_file_of_settings_too(home: Path) -> None:
    (home / "c.yaml").write_text("images: ~/photos\nmodel: tiny\noutput_dir: ~/brand\n")
    (verb,) = (one for one in cli.VERBS if one.__name__ == "fit")
    options = cli.parse(verb, ["--config", "~/c.yaml"])
    assert (options.images, options.output_dir) == (f"{home}/photos", f"{home}/brand")
    assert cli.parse(verb, ["--config=~/c.yaml", "--output_dir=~/b"]).output_dir == f"{home}/b"


NEEDS = {
    options: module.NEEDS
    for options, module in (
        (TrainOptions, train),
        (GenerateOptions, generate),
        (FitOptions, fit),
        (check.CheckOptions, check),
    )
}
REQUIRED: dict[Any, dict[str, Any]] = {
    TrainOptions: {"images": "p", "model": "m", "output_dir": "o"},
    GenerateOptions: {"model": "m", "output_dir": "o"},
    FitOptions: {"images": "p", "model": "m", "output_dir": "o"},
    check.CheckOptions: {"images": "o", "against": "p"},
}


def test_needs_are_of_settings_and_facts_there_are() -> None:
    for options, needs in NEEDS.items():
        names = {field.name for field in dataclasses.fields(options)}
        assert {name for need in needs for name in need.names} <= names
        assert {need.other for need in needs} - names <= {"ControlNets"}


@pytest.mark.parametrize(
    ("options", "values", "words"),
    [
        (TrainOptions, {"rank": 4}, ["rank 4", "method full", "method lora"]),
        (TrainOptions, {"start": "noise", "start_timestep": 900}, ["start_timestep 900", "start noise"]),
        (TrainOptions, {"k": 5}, ["k 5", "no start", "start pca"]),
        (TrainOptions, {"start": "mean", "draw": "sampled"}, ["draw 'sampled'", "start mean"]),
        (TrainOptions, {"optimizer": "adafactor", "adam_beta1": 0.0}, ["adam_beta1 0.0", "adafactor"]),
        (TrainOptions, {"num_validation_images": 4}, ["num_validation_images 4", "validation_steps 0"]),
        (TrainOptions, {"validation_loss_steps": 4}, ["validation_loss_steps 4", "no validation_data"]),
        (TrainOptions, {"validation_data": "test"}, ["validation_data 'test'", "validation_loss_steps 0"]),
        (GenerateOptions, {"k": 2, "start": "mean"}, ["k 2", "start mean", "start pca or image"]),
        (GenerateOptions, {"residual": True, "start": "noise"}, ["residual True", "start noise", "start text"]),
        (GenerateOptions, {"literal": True, "start": "noise"}, ["literal True", "start noise"]),
        (GenerateOptions, {"look_ahead": 0, "look_ahead_projection": False}, ["look_ahead_projection False"]),
        (GenerateOptions, {"eta": 0.5, "scheduler": "DDPMScheduler"}, ["eta 0.5", "DDPMScheduler", "DDIMScheduler"]),
        (
            GenerateOptions,
            {"negative_prompt": "blue", "guidance_scale": 1},
            ["negative_prompt 'blue'", "guidance_scale 1"],
        ),
        (GenerateOptions, {"prompts": "a.txt", "num_images_per_prompt": 3}, ["num_images_per_prompt 3", "no prompt"]),
        (FitOptions, {"k": 0, "text": "cca"}, ["text 'cca'", "k 0"]),
        (check.CheckOptions, {"model": "m"}, ["model 'm'", "no prior"]),
    ],
)
def test_a_setting_without_effect_is_refused(options: Any, values: Any, words: Any) -> None:
    with raises("option", *words, "leave"):
        options(**REQUIRED[options] | values)


def test_defaults_are_never_complained_of() -> None:
    for values in (
        {"start": "noise"},
        {"optimizer": "adafactor"},
        {"lr_scheduler": "constant"},
        {"method": "controlnet"},
    ):
        TrainSettings(**values)  # type: ignore[arg-type]
    config = SamplingSettings(start="noise", guidance_scale=0.0, look_ahead=0, scheduler="EulerDiscreteScheduler")
    check_needs(config, generate.NEEDS, ControlNets=0, scheduler="EulerDiscreteScheduler")
    with raises("option", "overlay True", "ControlNets 0"):
        check_needs(SamplingSettings(overlay=True), generate.NEEDS, ControlNets=0)


def test_a_long_value_is_quoted_by_its_beginning() -> None:
    assert len(quote("x" * 10**6)) < 120
    with raises("option", "int too large to be shown"):
        CompareOptions("p", "m", "o", batch_size=LONG)


@pytest.mark.parametrize("file", ["photo.png", "/dev/null", "page", "a.html.txt", "prior.safetensors"])
def test_a_page_takes_the_place_of_no_other_file(file: str) -> None:
    with raises("option", "output_file", ".html", file):
        ReportOptions("run", output_file=file)
    assert ReportOptions("run", output_file="Page.HTM").output_file == "Page.HTM"


def test_images_of_one_prompt_are_asked_for_by_the_thousand_at_most_a_hundred_times() -> None:
    with raises("option", "num_images_per_prompt", 10**10):
        GenerateOptions(prompt="x", model="M", output_dir="o", num_images_per_prompt=10**10)
