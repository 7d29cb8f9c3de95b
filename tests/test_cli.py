"""The command line: light help, flags read off the api, settings to YAML and back, one line for a mistake."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import onbrand
from onbrand import api, cli
from onbrand.api._train import USUAL
from onbrand.comparison.methods import CompareConfig
from onbrand.io import command
from onbrand.options.generate import GenerateConfig
from onbrand.options.train import EngineConfig, LogConfig, LoraConfig, LossConfig, OptimConfig, TrainConfig

HEAVY = {"torch", "diffusers", "transformers", "datasets", "numpy", "PIL", "matplotlib", "jsonargparse"}


def loaded(code: str) -> set[str]:
    """Top-level modules in sys.modules of a fresh process after `code`."""
    code += "\nimport sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    assert not loaded("from onbrand import cli; assert cli.main(['--help']) == 0") & HEAVY


def test_a_verbs_help_loads_no_torch() -> None:
    # and this is a test that can fail: the same question finds what is imported
    asked = "from onbrand import cli; [cli.verb_parser(verb).format_help() for verb in cli.VERBS]"
    assert not loaded(asked) & (HEAVY - {"jsonargparse"})
    assert "PIL" in loaded("import PIL")


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.__name__)
def test_every_parameter_is_a_documented_flag(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb.__name__, "--help"]) == 0
    shown = capsys.readouterr().out
    first, *others = inspect.signature(verb).parameters.values()
    assert f"\n  {first.name} " in shown
    settings = cli._settings(verb)
    for parameter in others:
        assert parameter.name in settings or f"--{parameter.name}" in shown
    for kind in settings.values():
        assert all(f"--{field.name}" in shown for field in dataclasses.fields(kind))
    for action in cli.verb_parser(verb)._actions:
        assert action.help, f"{verb.__name__} {action.dest} says nothing in `Args:`"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` was called with, instead of training."""
    calls: list[dict[str, Any]] = []

    def train(photos: str | Path, model: str | Path, out: str | Path, *, prior: str | Path | None = None,
              config: TrainConfig = USUAL, flip: bool = False) -> None:  # fmt: skip
        """Train."""
        calls.append({"photos": photos, "model": model, "out": out, "prior": prior, "config": config, "flip": flip})

    monkeypatch.setattr(cli, "VERBS", (train,))
    return calls


def test_the_issues_spelling(called: list[dict[str, Any]]) -> None:
    line = "train photos/ --model M --prior brand/ --out run/ --offset text --gain constant --optim.lr 3e-4 --flip"
    assert cli.main(line.split()) == 0
    settings = TrainConfig(offset="text", gain="constant", optim=OptimConfig(lr=3e-4))
    assert called == [
        {"photos": "photos/", "model": "M", "prior": "brand/", "out": "run/", "config": settings, "flip": True}
    ]


def test_print_config_round_trip(
    called: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--model M --out run/ --steps 7 --loss.min_snr 5 --optim.betas [0.8,0.9] --log.tracker tensorboard".split()
    assert cli.main(["train", "photos/", *flags]) == 0
    assert cli.main(["train", "photos/", *flags, "--print_config"]) == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    assert cli.main(["train", "--config", str(file)]) == 0
    assert called[1] == called[0] and called[0]["config"].loss == LossConfig(min_snr=5.0)
    assert cli.main(["train", "--config", str(file), "--steps", "8"]) == 0  # flags after the file win
    assert called[2]["config"] == dataclasses.replace(called[0]["config"], steps=8)


def test_a_runs_own_config_is_a_config(called: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = TrainConfig(offset="pca", k=5, optim=OptimConfig(betas=(0.5, 0.9), ema=0.99))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings) | {"optim": {
        **dataclasses.asdict(settings.optim), "betas": [0.5, 0.9]}}))  # fmt: skip
    assert cli.main(["train", "p", "--model", "M", "--out", "o", "--config", str(tmp_path / "config.yaml")]) == 0
    assert called[0]["config"] == settings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train photos", "--model, --out"),
        ("train --model M --out run", "PHOTOS is missing"),
        ("train photos --model M --out run --offset bad", "--offset: Expected one of 'mean', 'pca', 'text', 'none'"),
        ("train photos --model M --out run --steps many", "--steps: Expected a int. Got value: many"),
        ("train photos --model M --out run --bogus", "unrecognized arguments: --bogus"),
        ("train photos --model M --out run --config none.yaml", "none.yaml"),
        ("train photos --model M --out run --optim.lr -1", "optim.lr must be above 0; got -1.0"),
        ("fly", "invalid choice: 'fly'"),
        ("", "VERB"),
        ("report no/such/folder", "a report is read from a folder that exists, got no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    (error,) = [line for line in shown.err.splitlines() if "error: " in line]
    assert said in error and error.startswith("onbrand")


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ("--modle tiny", "--model"),
        ("--lr 1e-4", "--optim.lr"),
        ("--batch-size 4 --offest mean", "--batch, --offset"),
        ("--learning_rate 1e-4 --network_dim=8", "--optim.lr, --lora.rank"),
        ("--nothing like it", None),
    ],
)
def test_a_flag_that_does_not_exist_brings_the_one_that_was_meant(
    flags: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "photos", "--model", "M", "--out", "run", *flags.split()]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"{f'did you mean {meant}? ' if meant else ''}`onbrand train --help` lists what is accepted"


def test_flags_known_from_elsewhere_are_some_verbs_own() -> None:
    flags = {name for verb in cli.VERBS for name in cli.verb_parser(verb)._option_string_actions}
    assert {f"--{name}" for name in cli.KNOWN_AS.values()} <= flags


def test_debug_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONBRAND_DEBUG", "1")
    with pytest.raises(ValueError, match="a folder that exists"):
        cli.main(["report", "no/such/folder"])


def test_exit_1_below_require(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(pictures: str, *, passed: bool = False) -> Any:
        """Check."""
        return type("Result", (), {"passed": passed})()

    monkeypatch.setattr(cli, "VERBS", (check,))
    assert cli.main(["check", "pictures/"]) == 1 and cli.main(["check", "pictures/", "--passed"]) == 0


@pytest.mark.parametrize(("failed", "code"), [({}, 0), ({"pictures: plain/mean": "why"}, 1)])
def test_exit_1_where_a_part_failed(failed: dict[str, str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(photos: str) -> Any:
        """Compare."""
        return {"failed": failed}

    monkeypatch.setattr(cli, "VERBS", (compare,))
    assert cli.main(["compare", "photos/"]) == code


def test_an_unforeseen_error_keeps_its_traceback_and_a_stop_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(kind: str) -> None:
        """Fail."""
        raise KeyboardInterrupt if kind == "stop" else KeyError(kind)

    monkeypatch.setattr(cli, "VERBS", (verb,))
    assert cli.main(["verb", "stop"]) == 130 and "goes on where this stopped" in capsys.readouterr().err
    with pytest.raises(KeyError):
        cli.main(["verb", "bug"])


def test_a_warning_is_a_line_for_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(text: str) -> None:
        """Warn."""
        warnings.warn(f"look at {text}", stacklevel=2)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=2)

    monkeypatch.setattr(cli, "VERBS", (verb,))
    before = warnings.showwarning
    assert cli.main(["verb", "this"]) == 0
    assert capsys.readouterr().err == "onbrand: warning: look at this\n" and warnings.showwarning is before


def test_python_dash_m(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "onbrand", "report", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("onbrand: error: ") and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


CALLS: dict[Any, dict[str, Any]] = {
    api.fit: {"photos": "my photos/", "model": "M", "out": "brand", "k": 4, "text": "cca", "split": "train",
              "resolution": (64, 32), "flip": True, "batch": 4, "device": "cpu", "dtype": "bfloat16"},
    api.diagnose: {"brand": "brand", "model": "M", "scheduler": "DDIMScheduler", "steps": 30, "spacing": "trailing",
                   "zero_snr": True},
    api.train: {"photos": "p", "model": "M", "out": "run", "prior": "brand", "split": "train", "held": "test",
                "resolution": 64, "flip": True, "device": "cpu", "config": TrainConfig(
                    "mean", "window", k=2, steps=7, batch=2, seed=3, optim=OptimConfig(lr=3e-4, betas=(0.5, 0.9)),
                    loss=LossConfig(dropout=0.2, timesteps=(5, 900)), engine=EngineConfig("bf16", tf32=True),
                    log=LogConfig(validate_every=3), method="lora", lora=LoraConfig(rank=2, targets=("to_q",)))},
    api.generate: {"prompts": "p.jsonl", "model": "M", "out": "o", "prior": "b", "prompt": "a 'red' dress, \"new\"",
                   "count": 3, "seed": 5, "lora": "l", "lora_scale": 0.5, "controlnet": ["c1", "c2"], "device": "cpu",
                   "dtype": "float16", "offload": True, "config": GenerateConfig(
                       "pca", k=2, zero_mean=False, look_ahead=0, steps=8, scheduler="DDIMScheduler", karras=True,
                       guidance=1.5, eta=0.5, batch=2, controlnet_scale=(1.0, 0.5), overlay=True, trace=1)},
    api.check: {"pictures": "o", "against": "p", "require": 0.5, "json": True, "prior": "b", "model": "M",
                "reader": "garments", "clip": "garments-clip", "split": "train", "pose": "net", "device": "cpu"},
    onbrand.compare: {"photos": "p", "model": "M", "out": "o", "methods": ["stock/noise", "stock/mean"], "prompts": "r",
                  "sets": {"few": "f.jsonl"}, "held": "h", "prior": "b", "split": "train", "reader": "garments",
                  "clip": "garments-clip", "questions": {"Which?": ["stock/mean", "stock/noise"]}, "device": "cpu",
                  "config": CompareConfig(fine_tuning=3, ema=0.9, precision="bf16", sampling=2)},
}  # fmt: skip
"""Every option of every verb that records its command, none at its default."""


@pytest.mark.parametrize("verb", CALLS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("few", [False, True])
def test_the_command_written_beside_a_result_is_the_call_that_made_it(verb: Any, few: bool) -> None:
    """Parsed back it equals the call: with everything set, and with no more than a verb must be given."""
    usual = {name: p.default for name, p in inspect.signature(verb).parameters.items() if p.default is not p.empty}
    every = CALLS[verb]
    assert set(every) == set(inspect.signature(verb).parameters), "an option without a value here"
    assert not [name for name, value in every.items() if name in usual and value == usual[name]]
    given = every | usual if few else every
    line = command(verb, given)
    import shlex

    words = shlex.split(line)
    assert words[:2] == ["onbrand", verb.__name__]
    parsed = cli.parse(verb, words[2:])
    assert {name: _plainly(parsed.get(name, usual.get(name))) for name in given} == {
        name: _plainly(value) for name, value in given.items()
    }


def _plainly(value: Any) -> Any:
    """A tuple as the list that the command line makes of it, a path as its text."""
    if isinstance(value, tuple | list):
        return [_plainly(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def test_what_a_verb_records_is_all_that_it_was_given() -> None:
    """Each takes its arguments down in its first line, before any of them can change."""
    for verb in CALLS:
        body = inspect.getsource(verb).split('"""')[2].strip()
        assert body.startswith("given = dict(locals())"), verb.__name__
        assert f"command({verb.__name__}, given)" in body


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.__name__)
def test_help_cuts_no_sentence_and_asks_for_no_more_than_a_verb_needs(verb: Any) -> None:
    parser = cli.verb_parser(verb)
    for settings in cli._settings(verb).values():
        title = (inspect.getdoc(settings) or "").splitlines()[0]
        assert title.endswith("."), f"the heading of {settings.__name__} is cut: {title}"
    shown = " ".join(parser.format_help().split())
    first, needed = next(iter(inspect.signature(verb).parameters.items()))
    wanted = first.upper() if needed.default is inspect.Parameter.empty else f"[{first.upper()}]"
    assert shown.startswith(f"usage: onbrand {verb.__name__} {wanted} ")
    if verb is api.generate:
        assert "with the seeds seed, seed + 1, ... (default: 1)" in shown
