"""States appear whole or not at all, the last two are kept, and loading one executes nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from onbrand import io
from onbrand.options.train import TrainSettings
from onbrand.training import state as states
from onbrand.training.state import (
    State,
    check_resumable,
    check_same,
    discard_drafts,
    last_step,
    load_state,
    save_state,
    settings_of,
    trim_log,
)
from worlds import raises


def a_state(step: Any) -> Any:
    weights = {"unet.a": torch.full((2, 3), float(step)), "unet.b": torch.randn(4)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weights["unet.b"].clone())])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    settings = settings_of(TrainSettings()) | {"total_batch_size": 16}
    schedule = {"last_epoch": step, "_step_count": step + 1, "base_lrs": [1e-5], "_last_lr": [1e-5]}
    counters = {"schedule": schedule, "average": 3, "scaler": {}}
    return State(step, settings, {"prior": "abc"}, counters, weights, {}, optimizer.state_dict())


def test_what_is_saved_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_state(tmp_path, state := a_state(step), limit=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000011"]
    actual = load_state(tmp_path)
    assert (actual.step, actual.settings, actual.origin, actual.counters) == (
        11,
        state.settings,
        state.origin,
        state.counters,
    )
    for name in state.weights:
        assert torch.equal(actual.weights[name], state.weights[name])
    torch.testing.assert_close(actual.optimizer, state.optimizer, rtol=0, atol=0)


@pytest.mark.parametrize("moment", ["weights", "optimizer", "rename", "prune"])
def test_cut_off_while_saving_the_state_before_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Any
) -> None:
    save_state(tmp_path, a_state(1), limit=1)

    def die(*args: Any, **kwargs: Any) -> None:
        raise SystemError("killed")

    target = {
        "weights": (states, "save_file"),
        "optimizer": (states.torch, "save"),
        "rename": (io.os, "replace"),
        "prune": (io.shutil, "rmtree"),
    }[moment]
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        if moment == "prune":  # the first removal is of the draft; the one that counts comes after the renaming
            real = io.shutil.rmtree
            patch.setattr(io.shutil, "rmtree", lambda path, **kw: real(path, **kw) if kw else die())
        else:
            patch.setattr(*target, die)
        save_state(tmp_path, a_state(2), limit=1)
    assert load_state(tmp_path).step == (2 if moment == "prune" else 1)
    save_state(tmp_path, a_state(3), limit=1)
    assert load_state(tmp_path).step == 3


def test_a_state_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    path = save_state(tmp_path, a_state(1), limit=1)

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state": Bomb()}, path / "optimizer.pt")
    unsealed(path / "state.json")  # as older states are
    with raises("resume", path / "optimizer.pt", "eights only"):
        load_state(tmp_path)
    assert not (tmp_path / "executed").exists()


def unsealed(file: Path, **changes: Any) -> None:
    """Rewrites a state's numbers without the digests, as states were before these."""
    content = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("sha256", "files")}
    file.write_text(json.dumps(content | changes))


def test_a_state_without_its_own_digest_is_refused(tmp_path: Path) -> None:
    file = save_state(tmp_path, a_state(1), limit=1) / "state.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    with raises("resume", file, "sha256 is missing"):
        load_state(tmp_path)


def test_a_damaged_state_names_the_whole_one_before_it_which_is_gone_on_from(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, a_state(step), limit=3)
    for step, name in ((3, "weights.safetensors"), (2, "state.json")):
        file = tmp_path / f"step-0000000{step}" / name
        file.write_bytes(file.read_bytes()[:-9])
    with raises("resume", tmp_path / "step-00000003" / "weights.safetensors", "step-00000001 is whole") as caught:
        load_state(tmp_path)
    assert "remove step-00000002, step-00000003, and the same command goes on from there" in str(caught.value)
    for step in (3, 2):
        shutil.rmtree(tmp_path / f"step-0000000{step}")
    assert load_state(tmp_path).step == 1


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "average.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"\0" * 64, "cut", "flipped"])
def test_a_state_of_which_a_file_is_missing_or_damaged_is_named(tmp_path: Path, name: Any, damage: Any) -> None:
    file = save_state(tmp_path, a_state(1), limit=1) / name
    content = file.read_bytes()
    if damage is None:
        file.unlink()
    elif isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        middle = len(content) // 2
        file.write_bytes(
            content[:middle] + (b"" if damage == "cut" else bytes([content[middle] ^ 1]) + content[middle + 1 :])
        )
    with raises("resume", file.parent, name, "no whole state", "output_dir"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"step": "1"}, ("step must be a whole number", "'1'")),
        ({"step": 2}, ("its step is 2",)),
        ({"step": None}, ("step", "whole number")),
        ({"settings": []}, ("settings must be an object", "[]")),
        ({"origin": {"prior": 3}}, ("origin.prior must be text", "3")),
        ({"counters": {"average": -1}}, ("counters.schedule is missing",)),
        ({"schema": 99}, ("schema 99", "up to 2")),
    ],
)
def test_numbers_of_a_state_that_are_none_are_named(tmp_path: Path, changes: Any, values: Any) -> None:
    file = save_state(tmp_path, a_state(1), limit=1) / "state.json"
    unsealed(file, **changes)
    with raises("resume", file, *values):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
def test_a_state_that_is_not_finite_is_refused(tmp_path: Path, name: Any) -> None:
    state = a_state(1)
    if name == "optimizer.pt":
        state.optimizer["state"][0]["exp_avg"][1] = torch.inf
    else:
        state.weights["unet.a"][0, 1] = torch.nan
    path = save_state(tmp_path, state, limit=1)
    with raises("resume", path / name, "not finite"):
        load_state(tmp_path)


def test_what_is_no_state_is_passed_over(tmp_path: Path) -> None:
    save_state(tmp_path, a_state(1), limit=1)
    (tmp_path / "step-backup").mkdir()
    (tmp_path / "step-00000009").touch()
    assert load_state(tmp_path).step == last_step(tmp_path) == 1


def test_no_state_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "nowhere") is None


def test_other_images_or_another_prior_are_named() -> None:
    with raises("resume", "run/state holds 5 steps of another prior", "output_dir"):
        check_resumable(a_state(5), TrainSettings(), 16, {"prior": "abd"}, Path("run/state"))
    check_resumable(a_state(5), TrainSettings(), 16, {"prior": "abc"})


def test_a_setting_that_a_state_does_not_know_is_what_runs_had_before_it() -> None:
    record = a_state(5).settings
    del record["allow_tf32"]
    check_same(record, TrainSettings(), 16)
    with raises("resume", "allow_tf32", False, True):
        check_same(record, TrainSettings(allow_tf32=True), 16)
    for name, value in (("learning_rate", None), ("max_train_steps", "many"), ("total_batch_size", None)):
        with raises("resume", name, value):
            check_same(a_state(5).settings | {name: value}, TrainSettings(), 16)


def test_the_log_ends_at_the_resumed_step_and_loses_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5, "seconds": 1.0}) + "\n" for step in range(1, 6)]
    log.write_text("".join(lines) + '{"step": 6, "lo')
    trim_log(log, 9)
    assert log.read_text() == "".join(lines)
    trim_log(log, 3)
    assert log.read_text() == "".join(lines[:3])
    log.write_text("".join([lines[0], "garbage\n", *lines[2:], "garbage\n"]))
    trim_log(log, 5)
    assert log.read_text() == "".join([lines[0], "garbage\n", *lines[2:]]), "damage before is for its reader to name"
    trim_log(tmp_path / "none.jsonl", 3)


def test_a_state_without_a_schema_is_read_by_the_present_names(tmp_path: Path) -> None:
    path = save_state(tmp_path, a_state(1), limit=1)
    unsealed(path / "state.json")
    content = json.loads((path / "state.json").read_text())
    assert content.pop("schema") == 2
    content["origin"] = {"pictures": "abc", "prior": "def"}
    (path / "state.json").write_text(json.dumps(content))
    assert load_state(tmp_path).origin == {"images": "abc", "prior": "def"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    save_state(tmp_path, a_state(1), limit=1)
    for name in (".step-00000002.123.tmp", ".step-00000002.tmp", ".step-00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    (tmp_path / ".config.yaml.123.tmp").write_text("half")
    (tmp_path / ".other.123.tmp").write_text("another's")
    discard_drafts(tmp_path, "step-*", "config.yaml")
    assert sorted(os.listdir(tmp_path)) == [".other.123.tmp", "step-00000001"]
