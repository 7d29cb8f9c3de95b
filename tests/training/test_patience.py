"""Stopping: after how many validations without a better one, from where a run is resumed, and what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job import open_all, settings

from onbrand.models.pipeline import load
from onbrand.training.early_stopping import has_stalled, read_pass_rates
from onbrand.training.export import save_model
from onbrand.training.loop import train
from worlds import raises


@pytest.mark.parametrize(
    ("shares", "patience", "end"),
    [
        ([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 2, 5),
        ([0.5, 0.5], 1, 2),
        ([0.1, 0.2, 0.3], 1, None),
        ([0.0, 0.0, 0.0, 0.0], 3, 4),
        ([0.3, 0.2, 0.1], None, None),
        ([], 1, None),
    ],
)
def test_it_stalls_after_as_many_as_patience_that_raise_nothing(shares: Any, patience: Any, end: Any) -> None:
    counts = [count for count in range(len(shares) + 1) if has_stalled(shares[:count], patience)]
    assert counts[:1] == ([] if end is None else [end])


def test_a_share_is_kept_with_a_state_from_which_the_caller_may_finish(home: Any, tmp_path: Path) -> None:
    pipe, *rest = open_all(home)
    config = settings(max_train_steps=9, learning_rate=1e-2, ema_decay=0.5, validation_steps=2, checkpointing_steps=100)
    weights = {}

    def validate(pipe: Any, step: Any) -> Any:
        weights[step] = [weight.detach().clone() for weight in pipe.unet.parameters()]
        return step / 10

    run = train(pipe, *rest, config, tmp_path, validate)
    steps = [next(run) for _ in range(4)]
    run.close()
    assert [step.passed for step in steps] == [None, 0.2, None, 0.4]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["passed"] for line in lines] == [None, 0.2, None, 0.4]
    assert read_pass_rates(tmp_path) == [0.2, 0.4] and read_pass_rates(tmp_path / "nowhere") == []
    save_model(pipe, rest[-1], config, tmp_path)
    assert all(map(torch.equal, weights[4], load(tmp_path).unet.parameters())), "what was looked at last is saved"


def test_a_kill_after_the_last_state_takes_back_what_was_seen_since(home: Any, tmp_path: Path) -> None:
    config = settings(max_train_steps=3, validation_steps=1)
    for _ in train(*open_all(home), config, tmp_path, lambda pipe, step: step / 10):
        pass
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 4, "passed": 0.9}) + "\n" + '{"step": 5, "pas')
    assert read_pass_rates(tmp_path) == [0.1, 0.2, 0.3]


def test_validation_without_a_number_saves_no_state_of_its_own(home: Any, tmp_path: Path) -> None:
    config = settings(max_train_steps=3, validation_steps=1, checkpointing_steps=100)
    run = train(*open_all(home), config, tmp_path, lambda pipe, step: None)
    next(run)
    run.close()
    assert not (tmp_path / "state").exists() and read_pass_rates(tmp_path) == []


def test_a_damaged_line_of_the_log_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 1.0, "passed": step / 10}) for step in (1, 2, 3)]
    (tmp_path / "state" / "step-00000002").mkdir(parents=True)
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:2], "garbage"]))
    assert read_pass_rates(tmp_path) == [0.1, 0.2], "what is after the state is taken back"
    for line in ("garbage", "[" * 9999, '{"step": 1}', lines[0].replace("0.1", "true")):
        (tmp_path / "log.jsonl").write_text("\n".join([line, *lines[1:]]) + "\n")
        with raises("folder", f"{tmp_path / 'log.jsonl'} line 1 is damaged"):
            read_pass_rates(tmp_path)
