"""States appear whole or not at all, the last two are kept, and loading one executes nothing."""

import json
import os
import pickle

import pytest
import torch

from onbrand.options.train import TrainConfig
from onbrand.training import state as states
from onbrand.training.state import State, check_resumable, flatten, load, save, trim_log


def a_state(step):
    weights = {"unet.a": torch.full((2, 3), float(step)), "unet.b": torch.randn(4)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weights["unet.b"].clone())])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    settings = flatten(TrainConfig())
    return State(step, settings, {"prior": "abc"}, {"average": 3}, weights, {}, optimizer.state_dict())


def test_what_is_saved_is_loaded_and_two_are_kept(tmp_path):
    for step in (9, 10, 11):
        save(tmp_path, saved := a_state(step), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000011"]
    loaded = load(tmp_path)
    assert (loaded.step, loaded.settings, loaded.origin, loaded.counters) == (
        11,
        saved.settings,
        saved.origin,
        saved.counters,
    )
    for name in saved.weights:
        assert torch.equal(loaded.weights[name], saved.weights[name])
    torch.testing.assert_close(loaded.optimizer, saved.optimizer, rtol=0, atol=0)


@pytest.mark.parametrize("moment", ["weights", "optimizer", "rename", "prune"])
def test_cut_off_while_saving_the_state_before_is_loaded(tmp_path, monkeypatch, moment):
    save(tmp_path, a_state(1), keep=1)

    def die(*args, **kwargs):
        raise SystemError("killed")

    patched = {
        "weights": (states, "save_file"),
        "optimizer": (states.torch, "save"),
        "rename": (states.os, "replace"),
        "prune": (states.shutil, "rmtree"),
    }[moment]
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        if moment == "prune":  # the first removal is of the draft; the one that counts comes after the renaming
            real = states.shutil.rmtree
            patch.setattr(states.shutil, "rmtree", lambda path, **kw: real(path, **kw) if kw else die())
        else:
            patch.setattr(*patched, die)
        save(tmp_path, a_state(2), keep=1)
    assert load(tmp_path).step == (2 if moment == "prune" else 1)
    save(tmp_path, a_state(3), keep=1)
    assert load(tmp_path).step == 3


def test_a_state_that_would_execute_something_is_refused(tmp_path):
    path = save(tmp_path, a_state(1), keep=1)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state": Bomb()}, path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_no_state_is_none(tmp_path):
    assert load(tmp_path / "nowhere") is None


def test_other_pictures_or_another_prior_are_named():
    with pytest.raises(ValueError, match="the prior given now is not what the first 5 steps"):
        check_resumable(a_state(5), TrainConfig(), {"prior": "abd"})
    check_resumable(a_state(5), TrainConfig(), {"prior": "abc"})


def test_the_log_ends_at_the_resumed_step_and_loses_a_torn_line(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 6)]
    log.write_text("".join(lines) + '{"step": 6, "lo')
    trim_log(log, 9)
    assert log.read_text() == "".join(lines)
    trim_log(log, 3)
    assert log.read_text() == "".join(lines[:3])
    trim_log(tmp_path / "none.jsonl", 3)
