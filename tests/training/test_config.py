"""The settings: the paper's defaults, errors before any work, what may differ on resuming."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from onbrand.options.train import (
    ControlNetConfig,
    EngineConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
)
from onbrand.training.state import LATER, check_same, counting, flatten


def test_defaults_are_the_papers_but_for_offset_and_gain():
    config = TrainConfig()
    assert (config.batch, config.optim.lr, config.steps) == (16, 1e-5, 50_000)
    assert (config.offset, config.gain) == (None, "constant"), "docs/results.md"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainConfig(offset="median"), "offset must be one of mean, pca, text, none; got median"),
        (lambda: TrainConfig(gain="linear"), "gain must be one of window, constant; got linear"),
        (lambda: TrainConfig(offset="pca", k=0), "at least 1 component; got k 0"),
        (lambda: TrainConfig(steps=0), "steps must be at least 1; got 0"),
        (
            lambda: TrainConfig(batch=6, engine=EngineConfig(accumulation=4)),
            "multiple of engine.accumulation; got 6 and 4",
        ),
        (lambda: TrainConfig(loss=LossConfig(noise_offset=0.1)), "offset noise and offset text or mean cannot both"),
        (lambda: LossConfig(dropout=1.5), "loss.dropout must lie between 0 and 1; got 1.5"),
        (lambda: LossConfig(min_snr=0), "loss.min_snr must be above 0"),
        (lambda: LossConfig(input_perturbation=-0.1), "loss.input_perturbation must lie between 0 and 1; got -0.1"),
        (lambda: LossConfig(timesteps=(9, 3)), "in this order; got [9, 3]"),
        (lambda: LossConfig(timesteps=(-1, 3)), "0 or more and in this order; got [-1, 3]"),
        (lambda: OptimConfig(name="sgd"), "optim.name must be one of adamw, adafactor, prodigy, adamw8bit; got sgd"),
        (lambda: OptimConfig(name="prodigy"), "a factor of the step that it finds; got 1e-05: set 1"),
        (lambda: OptimConfig(name="adafactor", eps=1e-3), "got optim.betas [0.9, 0.999] and optim.eps 0.001"),
        (lambda: OptimConfig(lr=0), "optim.lr must be above 0; got 0"),
        (lambda: OptimConfig(warmup=10), "take schedule constant_with_warmup"),
        (lambda: OptimConfig(ema=1.0), "optim.ema must lie between 0 and 1"),
        (lambda: EngineConfig(precision="fp8"), "engine.precision must be one of auto, no, bf16, fp16; got fp8"),
        (lambda: LogConfig(patience=3), "log.patience counts validations, of which there are none; got 3"),
        (lambda: LogConfig(validate_every=5, patience=0), "log.patience must be at least 1; got 0"),
        (lambda: LogConfig(held_every=-1), "log.held_every must be at least 0; got -1"),
        (lambda: LogConfig(checkpoint_every=0), "log.checkpoint_every must be at least 1; got 0"),
    ],
)
def test_wrong_settings_say_the_rule_and_the_value(make, said):
    with pytest.raises(ValueError) as error:
        make()
    assert said in str(error.value)


def test_offset_noise_goes_with_plain_training():
    TrainConfig(offset="none", loss=LossConfig(noise_offset=0.1))


def test_resuming_names_the_setting_that_differs():
    config = TrainConfig(optim=OptimConfig(schedule="cosine"))
    flat = yaml.safe_load(yaml.safe_dump(flatten(config)))
    check_same(flat, config)
    check_same(flat, replace(config, log=LogConfig(checkpoint_every=7, tracker="tensorboard")))
    with pytest.raises(ValueError, match="optim.lr was 1e-05 and now is 0.1"):
        check_same(flat, replace(config, optim=OptimConfig(schedule="cosine", lr=0.1)))
    with pytest.raises(ValueError, match="steps was 50000 and now is 60000"):
        check_same(flat, replace(config, steps=60_000))


def test_a_run_may_be_made_longer_where_its_learning_rate_does_not_count_the_steps():
    flat = flatten(TrainConfig(steps=100))
    check_same(flat, TrainConfig(steps=200))
    with pytest.raises(ValueError, match="steps was 100 and now is 50"):
        check_same(flat, TrainConfig(steps=50))


def test_a_run_from_before_a_setting_is_resumed_with_what_it_had():
    config = TrainConfig()
    before = {name: value for name, value in flatten(config).items() if name not in LATER}
    check_same(before, config)
    counted = counting(flatten(config))
    assert set(LATER) <= set(flatten(config))
    assert all(counted.get(name, had) == had for name, had in LATER.items()), "what runs had is the default"
    with pytest.raises(ValueError, match="loss.input_perturbation was 0.0 and now is 0.1"):
        check_same(before, replace(config, loss=LossConfig(input_perturbation=0.1)))


def test_settings_of_another_method_are_refused():
    with pytest.raises(ValueError, match="settings of lora are for method lora; .* and method full"):
        TrainConfig(lora=LoraConfig(rank=16))
    with pytest.raises(ValueError, match="settings of controlnet are for method controlnet"):
        TrainConfig(method="lora", controlnet=ControlNetConfig(unet=True))


def test_settings_of_another_method_do_not_count():
    check_same(flatten(TrainConfig()) | {"lora.rank": 4}, TrainConfig())
    low = TrainConfig(method="lora", lora=LoraConfig(rank=4))
    with pytest.raises(ValueError, match="lora.rank was 4 and now is 8"):
        check_same(flatten(low), replace(low, lora=LoraConfig(rank=8)))


def test_the_settings_import_no_torch():
    code = "import sys, onbrand.options.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
