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


def recorded(config: TrainSettings) -> dict[str, Any]:
    """What a state says of its run, through YAML and back."""
    return yaml.safe_load(yaml.safe_dump(settings_of(config) | {"total_batch_size": 16}))


def test_defaults_are_the_papers_but_for_start_and_gain() -> None:
    config = TrainSettings()
    assert (config.train_batch_size, config.learning_rate, config.max_train_steps) == (16, 1e-5, 50_000)
    assert (config.start, config.gain) == (None, "constant"), "docs/research/results.md"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"start": "median"}, "start must be one of noise, mean, pca, text; got 'median'"),
        ({"gain": "linear"}, "gain must be one of window, constant; got 'linear'"),
        ({"start": "pca", "k": 0}, "at least 1 component; got k 0"),
        ({"max_train_steps": 0}, "max_train_steps must be at least 1; got 0"),
        ({"noise_offset": 0.1}, "offset noise and start text or mean cannot both"),
        ({"caption_dropout_rate": 1.5}, "caption_dropout_rate must lie in [0, 1]; got 1.5"),
        ({"snr_gamma": 0}, "snr_gamma must be above 0; got 0"),
        ({"input_perturbation": -0.1}, "input_perturbation must lie in [0, 1]; got -0.1"),
        ({"timestep_range": (9, 3)}, "in this order; got [9, 3]"),
        ({"timestep_range": (-1, 3)}, "0 or more and in this order; got [-1, 3]"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adafactor, prodigy, adamw8bit; got 'sgd'"),
        ({"optimizer": "prodigy"}, "a factor of the step size that it finds; got 1e-05: set 1"),
        ({"optimizer": "adafactor", "adam_epsilon": 1e-3}, "adam_epsilon (0.9, 0.999, 0.001)"),
        ({"learning_rate": 0}, "learning_rate must be above 0; got 0"),
        ({"lr_warmup_steps": 10}, "take lr_scheduler constant_with_warmup"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of auto, no, bf16, fp16; got 'fp8'"),
        ({"early_stopping_patience": 3}, "counts validations, and there are none; got 3"),
        ({"validation_steps": 5, "early_stopping_patience": 0}, "early_stopping_patience must be at least 1; got 0"),
        ({"validation_loss_steps": -1}, "validation_loss_steps must be at least 0; got -1"),
        ({"checkpointing_steps": 0}, "checkpointing_steps must be at least 1; got 0"),
        ({"rank": 16}, "rank is a setting of method lora; got rank 16 and method full"),
        ({"method": "lora", "train_unet": True}, "train_unet is a setting of method controlnet"),
        ({"method": "lora", "prediction_type": "v_prediction"}, "learnt by the whole UNet"),
        ({"method": "lora", "target_modules": ()}, "target_modules must name at least one layer"),
    ],
)
def test_wrong_settings_say_the_rule_and_the_value(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        TrainSettings(**given)
    assert said in str(error.value)


def test_offset_noise_goes_with_plain_training() -> None:
    TrainSettings(start="noise", noise_offset=0.1)


def test_resuming_names_the_setting_that_differs() -> None:
    config = TrainSettings(lr_scheduler="cosine")
    check_same(recorded(config), config, 16)
    check_same(recorded(config), replace(config, checkpointing_steps=7, report_to="tensorboard"), 16)
    with pytest.raises(ValueError, match="learning_rate was 1e-05 and now is 0.1"):
        check_same(recorded(config), replace(config, learning_rate=0.1), 16)
    with pytest.raises(ValueError, match="max_train_steps was 50000 and now is 60000"):
        check_same(recorded(config), replace(config, max_train_steps=60_000), 16)


def test_images_may_be_spread_over_other_processes_but_not_be_more() -> None:
    config = TrainSettings()
    check_same(recorded(config), replace(config, train_batch_size=4), 16)
    with pytest.raises(ValueError, match="total_batch_size was 16 and now is 32: set train_batch_size"):
        check_same(recorded(config), config, 32)


def test_a_run_may_be_made_longer_where_its_learning_rate_does_not_count_the_steps() -> None:
    flat = recorded(TrainSettings(max_train_steps=100))
    check_same(flat, TrainSettings(max_train_steps=200), 16)
    with pytest.raises(ValueError, match="steps was 100 and now is 50"):
        check_same(flat, TrainSettings(max_train_steps=50), 16)


def test_a_run_from_before_a_setting_is_resumed_with_what_it_had() -> None:
    config, later = TrainSettings(), BEFORE["train"]
    former = downgrade({name: value for name, value in settings_of(config).items() if name not in later})
    check_same(former, config, 16)
    counted = counting(settings_of(config))
    assert set(later) <= set(settings_of(config))
    assert all(counted.get(name, had) == had for name, had in later.items()), "what runs had is the default"
    with pytest.raises(ValueError, match="input_perturbation was 0.0 and now is 0.1"):
        check_same(former, replace(config, input_perturbation=0.1), 16)


def test_settings_of_another_method_do_not_count() -> None:
    check_same(recorded(TrainSettings()) | {"rank": 4}, TrainSettings(), 16)
    low = TrainSettings(method="lora", rank=4)
    with pytest.raises(ValueError, match="rank was 4 and now is 8"):
        check_same(recorded(low), replace(low, rank=8), 16)


def test_the_settings_import_no_torch() -> None:
    code = "import sys, onbrand.options.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
