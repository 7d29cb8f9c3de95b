"""The command line: light help, flags read off the options, settings to YAML and back, one line for a mistake."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import onbrand
from onbrand import api, cli
from onbrand.options._verb import Verb, command, default, verb
from onbrand.options.check import CheckOptions
from onbrand.options.compare import CompareOptions
from onbrand.options.former import ELSEWHERE, FORMER, upgrade
from onbrand.options.generate import GenerateOptions
from onbrand.options.train import TrainOptions, TrainSettings
from onbrand.training.state import settings_of
from worlds import raises

HEAVY = {"torch", "diffusers", "transformers", "datasets", "numpy", "PIL", "matplotlib", "accelerate"}
HELP = Path(__file__).parent / "help"
"""What each verb's --help shows; written anew by `pytest --help-text`."""


def modules_of(code: str) -> set[str]:
    """Top-level modules in sys.modules of a fresh process after `code`."""
    code += "\nimport sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    assert not modules_of("from onbrand import cli; assert cli.main(['--help']) == 0") & HEAVY
    code = "from onbrand import cli; [cli.main([verb.__name__, '--help']) for verb in cli.VERBS]"
    assert not modules_of(code) & HEAVY
    assert "PIL" in modules_of("import PIL"), "a test that can fail"


@pytest.mark.parametrize("name", [verb.__name__ for verb in cli.VERBS])
def test_help_is_what_was_looked_at(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main([name, "--help"]) == 0
    output = capsys.readouterr().out
    file = HELP / f"{name}.txt"
    if request.config.getoption("--help-text"):
        file.write_text(output, encoding="utf-8")
    assert output == file.read_text(encoding="utf-8"), "look at it, then write it anew: pytest --help-text"


@pytest.mark.parametrize("one", cli.VERBS, ids=lambda one: one.__name__)
def test_every_option_is_documented_and_its_choices_are_shown(
    one: Verb[Any, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([one.__name__, "--help"]) == 0
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    words = " ".join(f"{options_class.__doc__}" for options_class in one.options.__mro__)
    for field in dataclasses.fields(one.options):
        assert re.search(rf"\n +{field.name}: ", words), f"{field.name} says nothing in Attributes:"
        if field.name == dataclasses.fields(one.options)[0].name:
            continue
        assert f"--{field.name}" in output
        if "Literal" in str(field.type) or field.type in ("Start | None", "Gain", "Method", "Precision"):
            assert re.search(rf"--{field.name} {{[^}}]*,", output), f"choices of {field.name}"


def test_list_shows_the_presets_and_needs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--list"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for line in ("  stock/noise ", "  mean-window ", "  :lora<N> ", "  leak-dct ", "  +zeromean "):
        assert f"\n{line}" in output.out
    assert "{train: {start: noise, gain: window, noise_offset: 0.1}}" in output.out
    assert not modules_of("from onbrand import cli; assert cli.main(['compare', '--list']) == 0") & HEAVY
    assert cli.main(["train", "--list"]) == 2, "no other verb has it"


TRAINED = "train photos/ --model M --output_dir run/"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[TrainOptions]:
    """What `train` was called with, instead of training."""
    calls: list[TrainOptions] = []

    @verb(TrainOptions)
    def train(options: TrainOptions) -> None:
        """Train."""
        calls.append(options)

    monkeypatch.setattr(cli, "VERBS", (train,))
    return calls


def test_flags_are_the_options_fields(calls: list[TrainOptions]) -> None:
    line = f"{TRAINED} --prior brand/ --start text --gain constant --learning_rate 3e-4 --random_flip"
    assert cli.main(line.split()) == 0
    assert calls == [
        TrainOptions("photos/", "M", "run/", "brand/", start="text", gain="constant", learning_rate=3e-4,
                     random_flip=True)
    ]  # fmt: skip
    assert cli.main(line.replace("_", "-").split()) == 0, "with dashes too"
    assert calls[1] == calls[0]


def test_print_config_round_trip(calls: list[TrainOptions], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--max_train_steps",
        "7",
        "--snr_gamma",
        "5",
        "--adam_beta1",
        "0.8",
        "--report_to",
        "tensorboard",
        "--timestep_range",
        "5",
        "900",
    ]
    assert cli.main([*TRAINED.split(), *flags]) == 0
    assert cli.main([*TRAINED.split(), *flags, "--print_config"]) == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    assert cli.main(["train", "--config", str(file)]) == 0
    assert calls[1] == calls[0] and calls[0].snr_gamma == 5 and calls[0].timestep_range == (5, 900)
    assert cli.main(["train", "--config", str(file), "--max_train_steps", "8"]) == 0, "flags after the file win"
    assert calls[2] == dataclasses.replace(calls[0], max_train_steps=8)
    assert cli.main(["train", "other/", "--config", str(file)]) == 0
    assert calls[3].images == "other/"


FORMER_RUN = """
offset: pca
gain: constant
first: null
k: 5
draw: projected
steps: 50000
batch: 16
seed: 0
method: full
loss: {dropout: 0.1, min_snr: null, noise_offset: 0.0}
optim: {lr: 1.0e-05, schedule: constant, warmup: 0, weight_decay: 0.01, betas: [0.5, 0.9], eps: 1.0e-08, clip: 1.0,
  ema: 0.99}
engine: {precision: auto, accumulation: 2, gradient_checkpointing: false}
log: {checkpoint_every: 500, keep: 2, validate_every: 0, pictures: 8, held_every: 0, tracker: null}
"""
"""config.yaml as the first runs wrote it."""


@pytest.mark.parametrize("schema", [1, 2])
def test_a_runs_own_config_is_a_config(schema: int, calls: list[TrainOptions], tmp_path: Path) -> None:
    settings = TrainSettings(
        start="pca", k=5, adam_beta1=0.5, adam_beta2=0.9, ema_decay=0.99, train_batch_size=8,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(FORMER_RUN if schema == 1 else yaml.safe_dump({"schema": 2, **settings_of(settings)}))
    assert cli.main([*TRAINED.split(), "--config", str(file)]) == 0
    assert settings_of(calls[0]) == settings_of(settings)
    if schema == 1:
        run = upgrade("train", yaml.safe_load(FORMER_RUN))
        assert run["rank"] == 16 and run["train_batch_size"] == 8, "what came later is what the first runs had"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train photos", "--model, --output_dir must be given"),
        ("train --model M --output_dir run", "PATH must be given"),
        (f"{TRAINED} --start bad", "invalid choice 'bad' for argument '--start'"),
        (f"{TRAINED} --timestep_range 1", "--timestep_range: {None}|{INT INT} is expected; got ['1']; `onbrand"),
        (f"{TRAINED} --seed {'9' * 5000}", "--seed: Exceeds the limit (4300 digits) for integer string conversion"),
        (f"{TRAINED} --max_train_steps {10**20}", "max_train_steps must be a number of 64 bits; got 1000"),
        (f"{TRAINED} --learning_rate nan", "learning_rate must be a finite number; got nan"),
        (f"{TRAINED} --rank 4", "rank has no effect without method lora; got rank 4 and method full: take method lora"),
        (f"{TRAINED} --split=", "split must not be empty"),
        (f"{TRAINED} --prior=", "prior must name a file or a folder"),
        (f"{TRAINED} --max_train_steps many", "--max_train_steps: invalid literal for int() with base 10: 'many'"),
        (f"{TRAINED} --bogus", "Unrecognized options: --bogus"),
        (f"{TRAINED} --learning_rat 1", "Perhaps you meant: --learning_rate"),
        (f"{TRAINED} --config none.yaml", "none.yaml"),
        (f"{TRAINED} --config", "give --config FILE.yaml"),
        (f"{TRAINED} --learning_rate -1", "learning_rate must be above 0; got -1.0"),
        ("fly", "invalid choice: 'fly'"),
        ("", "VERB"),
        ("report no/such/folder", "a report is read from a folder that exists, got no/such/folder"),
        ("data shoes --output_dir o", "invalid choice 'shoes'"),
        ("check o --against p --require 2", "require must lie in [0, 1]; got 2.0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    output = capsys.readouterr()
    assert output.out == "" and "Traceback" not in output.err
    (error,) = [line for line in output.err.splitlines() if "error: " in line]
    assert message in error and error.startswith("onbrand")


def test_a_config_that_is_none_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (("- a", "one setting a line"), ("bogus: 1", "bogus, which `onbrand train` does not know")):
        (tmp_path / "c.yaml").write_text(content)
        assert cli.main([*TRAINED.split(), "--config", str(tmp_path / "c.yaml")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "present_flags"),
    [
        ("--out run/", "--output_dir run/"),
        ("--offset none --loss.min_snr 5", "--start noise --snr_gamma 5"),
        ("--optim.betas [0.5,0.9] --engine.offload true", "--adam_beta1 0.5 --adam_beta2 0.9 --offload"),
        ("--engine.accumulation 4 --batch 16", "--gradient_accumulation_steps 4 --train_batch_size 4"),
        ('--method lora --lora.targets ["to_q","to_k"]', "--method lora --target_modules to_q to_k"),
        ("--steps=7 --log.tracker null --optim.clip null", "--max_train_steps 7 --report_to None --max_grad_norm None"),
        ("--loss.timesteps [5,900] --flip", "--timestep_range 5 900 --random_flip"),
    ],
)
def test_former_flags_are_taken_for_one_release_with_a_note(
    flags: str, present_flags: str, calls: list[TrainOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TRAINED.split(), *flags.split()]) == 0
    notes = capsys.readouterr().err
    assert cli.main([*TRAINED.split(), *present_flags.split()]) == 0
    assert calls[0] == calls[1] and capsys.readouterr().err == ""
    assert notes.count("is now --") == notes.count("note:") == len(re.findall("--(?!method)", flags))


@pytest.mark.parametrize("word", ["[brand] a red dress", "[a, b]", "on", "007", "null is no number", "{a"])
def test_words_are_not_read_as_values(word: str) -> None:
    """A prompt or a folder is what was typed, by the present names and by the former ones."""
    line = ["--prompt", word, "--model", "M", "--out", word, "--steps", "3"]
    options = cli.parse(api.generate, line)
    assert (options.prompt, options.output_dir, options.num_inference_steps) == (word, word, 3)


@pytest.mark.parametrize(("processes", "batch", "size"), [("1", "16", 8), ("2", "16", 4), ("2", "6", None)])
def test_the_former_batch_counted_all_processes(
    processes: str, batch: str, size: int | None, calls: list[TrainOptions], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", processes)
    (tmp_path / "c.yaml").write_text(f"batch: {batch}\nengine: {{accumulation: 2}}\n")
    for more in (["--batch", batch, "--engine.accumulation", "2"], ["--config", str(tmp_path / "c.yaml")]):
        calls.clear()
        assert cli.main([*TRAINED.split(), *more]) == (0 if size else 2)
        assert [options.train_batch_size for options in calls] == ([size] if size else [])
        assert size or "give train_batch_size" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--engine.accumulation x", "--optim.betas x", "--batch x", "--steps 3 --bogus [a"])
def test_a_wrong_former_value_is_one_line(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TRAINED.split(), *flags.split()]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_other_programs_flags_are_taken(calls: list[TrainOptions], capsys: pytest.CaptureFixture[str]) -> None:
    theirs = "train --pretrained_model_name_or_path M --train_data_dir p --output-dir run --network_dim=4 --method lora"
    assert cli.main(theirs.split()) == 0 and capsys.readouterr().err == ""
    assert calls == [TrainOptions("p", "M", "run", rank=4, method="lora")]


def test_every_former_name_and_every_name_from_elsewhere_is_some_verbs_own() -> None:
    fields = {one.__name__: {field.name for field in dataclasses.fields(one.options)} for one in cli.VERBS}
    assert set(FORMER) == set(fields)
    for name, former in FORMER.items():
        assert set(former.values()) <= fields[name] and not set(former) & fields[name]
    assert set(ELSEWHERE.values()) <= set().union(*fields.values())


def test_debug_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONBRAND_DEBUG", "1")
    with raises("folder", "got no/such/folder"):
        cli.main(["report", "no/such/folder"])


@dataclass
class Options:
    """Of verbs that are made up here.

    Attributes:
        what: any word
    """

    what: str = ""


@pytest.mark.parametrize(("failures", "code"), [({}, 0), ({"images: plain/mean": "why"}, 1)])
def test_exit_1_where_a_part_failed(failures: dict[str, str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(options: Options) -> Any:
        """Compare."""
        return {"failed": failures}

    monkeypatch.setattr(cli, "VERBS", (Verb(Options, compare),))
    assert cli.main(["compare"]) == code


def test_exit_1_below_require(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(options: Options) -> Any:
        """Check."""
        return type("Result", (), {"passed": options.what == "good"})()

    monkeypatch.setattr(cli, "VERBS", (Verb(Options, check),))
    assert cli.main(["check"]) == 1 and cli.main(["check", "--what", "good"]) == 0


def test_an_unforeseen_error_keeps_its_traceback_and_a_stop_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fiction(options: Options) -> None:
        """Fail."""
        raise KeyboardInterrupt if options.what == "stop" else KeyError(options.what)

    monkeypatch.setattr(cli, "VERBS", (Verb(Options, fiction),))
    monkeypatch.setitem(FORMER, "fiction", {})
    assert cli.main(["fiction", "--what", "stop"]) == 130 and "goes on where this stopped" in capsys.readouterr().err
    with pytest.raises(KeyError):
        cli.main(["fiction", "--what", "bug"])


def test_a_warning_is_a_line_for_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fiction(options: Options) -> None:
        """Warn."""
        warnings.warn(f"look at {options.what}", stacklevel=2)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=2)

    monkeypatch.setattr(cli, "VERBS", (Verb(Options, fiction),))
    monkeypatch.setitem(FORMER, "fiction", {})
    before = warnings.showwarning
    assert cli.main(["fiction", "--what", "this"]) == 0
    assert capsys.readouterr().err == "onbrand: warning: look at this\n" and warnings.showwarning is before


def test_a_name_that_the_terminal_cannot_show_ends_no_run(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "onbrand",
        "data",
        "garments",
        "--output_dir",
        str(tmp_path / "\u00e9"),
        "--num_images=1",
    ]
    result = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0 and "\\xe9" in result.stdout and not result.stderr


def test_python_dash_m(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "onbrand", "report", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("onbrand: error: ") and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


CALLS: dict[str, Any] = {
    "fit": api.fit.options(
        "my photos/", "M", "brand", k=4, text="cca", split="train", resolution=(64, 32), enable_bucket=True,
        bucket_reso_steps=8, random_flip=True, batch_size=4, device="cpu", dtype="bfloat16",
        latents_dtype="float16", latents_from="kohya", push_to_hub=True, hub_model_id="o/n",
        private=True, model_config="F",
    ),
    "diagnose": api.diagnose.options(
        "brand", model="M", scheduler="DDIMScheduler", num_inference_steps=30, timestep_spacing="trailing",
        rescale_betas_zero_snr=True, trained_noise_offset=0.05, model_config="F",
    ),
    "train": TrainOptions(
        "p", "M", "run", "brand", "train", "test", 64, True, "cpu", "F", start="pca", gain="window", start_timestep=960,
        k=2, draw="sampled", method="lora", scheduler="DDIMScheduler", seed=3, max_train_steps=7, train_batch_size=2,
        gradient_accumulation_steps=3, learning_rate=3e-4, optimizer="adamw8bit", lr_scheduler="linear",
        lr_warmup_steps=2, adam_weight_decay=0.0, adam_beta1=0.5, adam_beta2=0.9, adam_epsilon=1e-7, max_grad_norm=None,
        ema_decay=0.9, rank=2, lora_alpha=4, target_modules=("to_q",), train_text_encoder=True,
        caption_dropout_rate=0.2, snr_gamma=5.0, input_perturbation=0.1, timestep_range=(5, 900),
        mixed_precision="bf16", gradient_checkpointing=True, prefetch=False, compile=True, offload=True,
        allow_tf32=True, checkpointing_steps=3, checkpoints_total_limit=1, validation_steps=3, num_validation_images=2,
        validation_loss_steps=4, early_stopping_patience=2, report_to="tensorboard", push_to_hub=True,
        hub_model_id="o/n", private=True,
    ),
    "generate": GenerateOptions(
        "p.jsonl", model="M", output_dir="o", prior="b", prompt="a 'red' dress, \"new\"", num_images_per_prompt=3,
        negative_prompt="two shoes", seed=5, resolution=(64, 32), lora="l", lora_scale=-0.5,
        controlnet=("c1", "c2"), device="cpu", dtype="float16", offload=True,
        start="pca", k=2, zero_mean=False, look_ahead=1, look_ahead_projection=False, literal=True,
        num_inference_steps=8, scheduler="DDIMScheduler", timestep_spacing="trailing", use_karras_sigmas=True,
        guidance_scale=1.5, eta=0.5, batch_size=2, controlnet_conditioning_scale=(1.0, 0.5), overlay=True, trace=1,
        model_config="F", against="p", max_draws=7, attributes="garments",
    ),
    "check": CheckOptions(
        "o", "p", require=0.5, json=True, prior="b", model="M", attributes="garments", clip="garments-clip",
        split="train", pose="net", device="cpu", model_config="F",
    ),
    "compare": CompareOptions(
        "p", "M", "o", methods=("stock/noise", "stock/mean"), prompts="r", prompt_sets={"few": "f.jsonl"},
        reference_images="h", prior="b", split="train", attributes="garments", clip="garments-clip",
        questions={"Which?": ["stock/mean", "stock/noise"]}, device="cpu", max_train_steps=3, train_batch_size=2,
        learning_rate=1e-4, ema_decay=0.9, caption_dropout_rate=0.0, mixed_precision="bf16", num_inference_steps=2,
        guidance_scale=1.0, batch_size=3, model_config="F",
    ),
    "merge": api.merge.options("l", "o", model="M", single_file=True, lora_scale=-1.0, device="cpu", model_config="F"),
    "push": api.push.options("b", hub_model_id="o/n", private=True),
    "export": api.export.options(
        "run", format="webui", output_dir="o", model="M", device="cpu", model_config="F"
    ),
    "patch": api.patch.options("kohya", script="s.py", prior="b", start_timestep=999, version="0.10.1", write=True),
    "report": api.report.options("run", output_file="page.html"),
    "data": api.data.options("garments", "o", split="test", num_images=3),
    "ui": cli.ui.options("studio", models="models", host="localhost", port=7861),
}  # fmt: skip
"""Every verb with options that are not their defaults."""
ALONE = {"prediction_type", "train_unet", "noise_offset", "handoff", "residual"}
"""Options that no call can have beside the others'; each is tried by itself."""


@pytest.mark.parametrize("one", cli.VERBS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("few", [False, True])
def test_the_command_written_beside_a_result_is_the_call_that_made_it(one: Verb[Any, Any, Any], few: bool) -> None:
    """Parsed back it equals the call: with everything set, and with no more than a verb must be given."""
    options = CALLS[one.__name__]
    fields = dataclasses.fields(options)
    defaults = {field.name for field in fields if getattr(options, field.name) == default(field)}
    assert defaults <= ALONE, "an option without a value here"
    if few:
        required = {f.name: getattr(options, f.name) for f in fields if default(f) is dataclasses.MISSING}
        options = one.options(**required)
    words = shlex.split(command(one.__name__, options))
    assert words[:2] == ["onbrand", one.__name__]
    assert cli.parse(one, words[2:]) == options


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions("p", "M", "o", prediction_type="v_prediction"),
        TrainOptions("p", "M", "o", method="controlnet", train_unet=True),
        TrainOptions("p", "M", "o", start="noise", noise_offset=0.1),
        GenerateOptions(model="M", output_dir="o", handoff=True),
        GenerateOptions(model="M", output_dir="o", start="text", residual=True),
    ],
)
def test_so_are_those_with_what_stands_alone(options: Any) -> None:
    one = api.train if isinstance(options, TrainOptions) else api.generate
    assert cli.parse(one, shlex.split(command(one.__name__, options))[2:]) == options


def test_from_python_a_verb_takes_its_fields_or_its_options(calls: list[TrainOptions]) -> None:
    (train,) = cli.VERBS
    train("p", "M", "o", seed=2)
    train.run(TrainOptions("p", "M", "o", seed=2))
    assert calls[0] == calls[1] and repr(train) == "<onbrand train>"
    with pytest.raises(TypeError, match="bogus"):
        train("p", "M", "o", bogus=1)
    assert onbrand.fit.__doc__ and "images" in str(onbrand.fit.__signature__)


@pytest.mark.parametrize(
    "content", ["a: " + "[" * 9999, "a: " + "9" * 5000, "- a", "1: 2", "a: *b", "{[]: 1}", "a: &a [*a]"]
)
def test_a_damaged_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (file := tmp_path / "config.yaml").write_text(content)
    assert cli.main(["train", "photos", "--model", "tiny", "--output_dir", "run", "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "--config" in line and "[option]" in line
