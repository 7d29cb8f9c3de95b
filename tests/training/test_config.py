"""The settings: the paper's defaults, errors before any work, what may differ on resuming."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import yaml

from onbrand.options.former import BEFORE, downgrade
from onbrand.options.train import TrainSettings
from onbrand.training.state import check_same, counting, settings_of
from worlds import raises


def record_of(config: TrainSettings) -> dict[str, Any]:
    """What a state says of its run, through YAML and back."""
    return yaml.safe_load(yaml.safe_dump(settings_of(config) | {"total_batch_size": 16}))


def test_defaults_are_the_papers_but_for_start_and_gain() -> None:
    config = TrainSettings()
    assert (config.train_batch_size, config.learning_rate, config.max_train_steps) == (16, 1e-5, 50_000)
    assert (config.start, config.gain) == (None, "constant"), "docs/research/results.md"


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"start": "median"}, ("start", "noise, mean, pca, text", "'median'")),
        ({"gain": "linear"}, ("gain", "window, constant", "'linear'")),
        ({"start": "pca", "k": 0}, ("k", "at least 1", "got 0")),
        ({"max_train_steps": 0}, ("max_train_steps", "at least 1", "got 0")),
        ({"noise_offset": 0.1}, ("noise_offset 0.1", "start noise", "no start")),
        ({"caption_dropout_rate": 1.5}, ("caption_dropout_rate", [0, 1], 1.5)),
        ({"snr_gamma": 0}, ("snr_gamma", "above 0", "got 0")),
        ({"input_perturbation": -0.1}, ("input_perturbation", [0, 1], -0.1)),
        ({"timestep_range": (9, 3)}, ("timestep_range", [9, 3])),
        ({"timestep_range": (-1, 3)}, ("timestep_range", "at least 0", "got -1")),
        ({"timestep_range": (1,)}, ("timestep_range", "2 values", "got (1,)")),
        ({"optimizer": "sgd"}, ("optimizer", "adamw, adafactor, prodigy, adamw8bit", "'sgd'")),
        ({"optimizer": "prodigy"}, ("prodigy", "learning_rate", "1e-05", "set 1")),
        ({"optimizer": "adafactor", "adam_epsilon": 1e-3}, ("adafactor", "adam_epsilon 0.001", "adamw, prodigy")),
        ({"learning_rate": 0}, ("learning_rate", "above 0", "got 0")),
        ({"lr_warmup_steps": 10}, ("lr_warmup_steps 10", "lr_scheduler constant:", "constant_with_warmup")),
        ({"ema_decay": 1.0}, ("ema_decay", "0 and 1", 1.0)),
        ({"mixed_precision": "fp8"}, ("mixed_precision", "auto, no, bf16, fp16", "'fp8'")),
        ({"early_stopping_patience": 3}, ("early_stopping_patience 3", "validation_steps 0")),
        ({"validation_steps": 5, "early_stopping_patience": 0}, ("early_stopping_patience", "at least 1", "got 0")),
        ({"validation_loss_steps": -1}, ("validation_loss_steps", "at least 0", -1)),
        ({"checkpointing_steps": 0}, ("checkpointing_steps", "at least 1", "got 0")),
        ({"rank": 16}, ("method lora", "rank 16", "method full")),
        ({"method": "lora", "train_unet": True}, ("method controlnet", "train_unet True", "method lora")),
        (
            {"method": "lora", "prediction_type": "v_prediction"},
            ("prediction_type", "v_prediction", "method lora", "method full"),
        ),
        ({"method": "lora", "target_modules": ()}, ("target_modules", "to_q", "none")),
    ],
)
def test_wrong_settings_say_the_rule_and_the_value(options: dict[str, Any], values: tuple[Any, ...]) -> None:
    with raises("option", *values):
        TrainSettings(**options)


def test_offset_noise_goes_with_plain_training() -> None:
    TrainSettings(start="noise", noise_offset=0.1)


def test_resuming_names_the_setting_that_differs() -> None:
    config = TrainSettings(lr_scheduler="cosine")
    check_same(record_of(config), config, 16)
    check_same(record_of(config), replace(config, checkpointing_steps=7, report_to="tensorboard"), 16)
    with raises("resume", "learning_rate", "1e-05", "0.1"):
        check_same(record_of(config), replace(config, learning_rate=0.1), 16)
    with raises("resume", "max_train_steps", 50000, 60000):
        check_same(record_of(config), replace(config, max_train_steps=60_000), 16)


def test_images_may_be_spread_over_other_processes_but_not_be_more() -> None:
    config = TrainSettings()
    check_same(record_of(config), replace(config, train_batch_size=4), 16)
    with raises("resume", "total_batch_size", "was 16", "is 32", "train_batch_size"):
        check_same(record_of(config), config, 32)


def test_a_run_may_be_made_longer_where_its_learning_rate_does_not_count_the_steps() -> None:
    record = record_of(TrainSettings(max_train_steps=100))
    check_same(record, TrainSettings(max_train_steps=200), 16)
    with raises("resume", "max_train_steps", "was 100", "is 50"):
        check_same(record, TrainSettings(max_train_steps=50), 16)


def test_a_run_from_before_a_setting_is_resumed_with_what_it_had() -> None:
    config, later = TrainSettings(), BEFORE["train"]
    former = downgrade({name: value for name, value in settings_of(config).items() if name not in later})
    check_same(former, config, 16)
    settings = counting(settings_of(config))
    assert set(later) <= set(settings_of(config))
    assert all(settings.get(name, value) == value for name, value in later.items()), "what runs had is the default"
    with raises("resume", "input_perturbation", "0.0", "0.1"):
        check_same(former, replace(config, input_perturbation=0.1), 16)


def test_settings_of_another_method_do_not_count() -> None:
    check_same(record_of(TrainSettings()) | {"rank": 4}, TrainSettings(), 16)
    config = TrainSettings(method="lora", rank=4)
    with raises("resume", "rank", "was 4", "is 8"):
        check_same(record_of(config), replace(config, rank=8), 16)


def test_settings_without_effect_are_no_other_run() -> None:
    """A run of before they were refused is gone on with when they are taken out."""
    recorded = record_of(TrainSettings()) | {"k": 7, "adam_beta1": 0.5, "num_validation_images": 3}
    with raises("resume", "adam_beta1", "was 0.5"):
        check_same(recorded, TrainSettings(), 16)
    recorded |= {"start": "noise", "optimizer": "adafactor", "start_timestep": 900}
    check_same(recorded, TrainSettings(start="noise", optimizer="adafactor"), 16)


def test_the_settings_import_no_torch() -> None:
    code = "import sys, onbrand.options.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
