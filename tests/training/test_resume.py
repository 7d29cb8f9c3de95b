"""Stopped or killed anywhere and resumed, a run is bit for bit the run that went through; on two processes, nearly."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import job
import pytest
import torch
from job import open_all, settings
from safetensors.torch import load_file

from onbrand.data.records import Record
from onbrand.training.loop import train
from processes import SERVER
from worlds import raises

EVERYTHING = {
    "max_train_steps": 7,
    "gain": "constant",
    "start": "pca",
    "draw": "sampled",
    "caption_dropout_rate": 0.5,
    "snr_gamma": 5.0,
    "learning_rate": 1e-2,
    "ema_decay": 0.9,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 2,
}

LORA = {"method": "lora", "rank": 3, "lora_alpha": 6, "train_text_encoder": True}
CONTROL = {"method": "controlnet"}
BOTH = CONTROL | {"train_unet": True}
HALF = {"mixed_precision": "bf16"}


def through(run: Any) -> Any:
    return list(run)


def same(one: Path, two: Path) -> None:
    """Asserts that two run folders hold the same numbers."""
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
    for line in logs[0] + logs[1]:
        del line["seconds"]
    assert logs[0] == logs[1]
    last = max(os.listdir(one / "state"))
    assert last == max(os.listdir(two / "state"))
    for file in ("weights", "average"):
        assert (one / "state" / last / f"{file}.safetensors").read_bytes() == (
            two / "state" / last / f"{file}.safetensors"
        ).read_bytes(), file
    optimizers = [torch.load(out / "state" / last / "optimizer.pt", weights_only=True) for out in (one, two)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
    files = sorted(file.relative_to(one) for file in (one / "model").rglob("*.safetensors"))
    assert files == sorted(file.relative_to(two) for file in (two / "model").rglob("*.safetensors"))
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


OTHERS = {"adafactor": ("transformers", 1e-3), "prodigy": ("prodigyopt", 1.0), "adamw8bit": ("bitsandbytes", 1e-3)}
"""Optimiser -> the package it comes from, and a learning rate."""


@pytest.mark.parametrize(
    "options",
    [{"max_train_steps": 5, "checkpointing_steps": 2}, *(EVERYTHING | more for more in ({}, LORA, CONTROL, BOTH))]
    + [EVERYTHING | more | HALF for more in (LORA, CONTROL)]
    + [EVERYTHING | {"optimizer": name, "learning_rate": lr} for name, (_, lr) in OTHERS.items()],
    ids=["paper", "everything", "lora", "controlnet", "controlnet and UNet", "lora, half", "controlnet, half", *OTHERS],
)
def test_stopped_and_resumed_is_the_run_that_went_through(home: Any, tmp_path: Path, options: Any) -> None:
    if name := options.get("optimizer"):
        pytest.importorskip(OTHERS[name][0])
    config, parts_of = settings(**options), partial(open_all, home, method=options.get("method", "full"))
    through(train(*parts_of(), config, tmp_path / "whole"))
    run = train(*parts_of(), config, tmp_path / "parts")
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    run.close()
    steps = through(train(*parts_of(), config, tmp_path / "parts"))
    assert steps[0].step == 3, "from the state after step 2"
    same(tmp_path / "whole", tmp_path / "parts")
    assert through(train(*parts_of(), config, tmp_path / "parts")) == [], "nothing is left to do"


def test_a_run_is_made_longer_as_if_it_had_been_so_from_the_beginning(home: Any, tmp_path: Path) -> None:
    through(train(*open_all(home), settings(max_train_steps=5), tmp_path / "whole"))
    through(train(*open_all(home), settings(max_train_steps=2), tmp_path / "parts"))
    through(train(*open_all(home), settings(max_train_steps=5), tmp_path / "parts"))
    same(tmp_path / "whole", tmp_path / "parts")


def test_other_settings_images_or_priors_are_not_resumed(home: Any, tmp_path: Path) -> None:
    pipe, records, store, prior = open_all(home)
    through(train(pipe, records, store, prior, settings(max_train_steps=1), tmp_path))
    before = sorted(tmp_path.rglob("*"))
    other_records = [replace(records[0], text="product photo, other")] + records[1:]
    assert isinstance(other_records[0], Record)
    slower = settings(max_train_steps=2, learning_rate=1e-4)
    for arguments, values in [
        ((records, prior, slower), ("learning_rate", "0.001", "0.0001")),
        ((records, prior, settings(max_train_steps=2, gain="constant")), ("gain", "window", "constant")),
        ((other_records, prior, settings(max_train_steps=2)), (tmp_path / "state", "1 step of other images")),
        ((records[:-1], prior, settings(max_train_steps=2)), ("1 step of other images",)),
        ((records, job.tiny_prior(pipe, job.CLASSES, k=2), settings(max_train_steps=2)), ("another prior",)),
    ]:
        with raises("resume", *values):
            train(pipe, arguments[0], store, arguments[1], arguments[2], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_state_is_said_and_without_it_the_run_is_the_same(home: Any, tmp_path: Path) -> None:
    config = settings(max_train_steps=5, checkpointing_steps=2)
    through(train(*open_all(home), config, tmp_path / "whole"))
    run = train(*open_all(home), config, tmp_path / "parts")
    assert [next(run).step for _ in range(4)][-1] == 4
    run.close()
    damaged = tmp_path / "parts" / "state" / "step-00000004"
    (damaged / "optimizer.pt").write_bytes((damaged / "optimizer.pt").read_bytes()[:-100])
    with raises("resume", damaged / "optimizer.pt", "step-00000002 is whole: remove step-00000004"):
        train(*open_all(home), config, tmp_path / "parts")
    shutil.rmtree(damaged)
    assert [step.step for step in train(*open_all(home), config, tmp_path / "parts")] == [3, 4, 5]
    same(tmp_path / "whole", tmp_path / "parts")


def in_process(home: Any, out: Any, options: Any, lines: Any = None, pause: Any = 0.0) -> Any:
    """A run in a process of its own: to its end, or killed `pause` seconds after its log has so many lines; whether
    the kill came before its end."""
    process = SERVER.Process(target=job.run, args=(home, out, options))
    process.start()
    if lines is None:
        process.join()
        assert process.exitcode == 0
        return False
    log = Path(out, "log.jsonl")
    while process.is_alive() and (log.read_text().count("\n") if log.exists() else 0) < lines:
        time.sleep(0.005)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def kill_and_compare(home: Any, tmp_path: Path, pairs: Any, more: Any) -> None:
    """Runs killed twice each, at random moments, against one that was not; half of the time goes into saving."""
    options = EVERYTHING | more | {"max_train_steps": 8, "checkpointing_steps": 1}
    seed = random.randrange(2**32)
    print(f"moments from seed {seed}")
    draw = random.Random(seed)
    in_process(home, tmp_path / "whole", options)
    for pair in range(pairs):
        moments = sorted(draw.sample(range(6), 2))
        kills = [in_process(home, tmp_path / str(pair), options, lines, draw.uniform(0, 0.15)) for lines in moments]
        assert any(kills), "on a busy machine a run can end before the kill; not before both"
        in_process(home, tmp_path / str(pair), options)
        same(tmp_path / "whole", tmp_path / str(pair))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA, CONTROL], ids=["full", "lora", "controlnet"])
def test_killed_twice_it_is_the_run_that_was_not(home: Any, tmp_path: Path, more: Any) -> None:
    kill_and_compare(home, tmp_path, 1, more)


@pytest.mark.prove
@pytest.mark.parametrize("more", [{}, LORA, CONTROL], ids=["full", "lora", "controlnet"])
def test_killed_ten_times_it_is_the_run_that_was_not(home: Any, tmp_path: Path, more: Any) -> None:
    kill_and_compare(home, tmp_path, 5, more)


@pytest.mark.prove
@pytest.mark.parametrize("accumulation, more", [(1, {}), (2, {}), (1, LORA), (1, CONTROL)])
def test_two_processes_make_the_run_of_one(home: Any, tmp_path: Path, accumulation: Any, more: Any) -> None:
    """Two processes, on gloo: the same batches, hence the same losses."""
    options = EVERYTHING | more | {"max_train_steps": 4, "gradient_accumulation_steps": accumulation}
    alone, pair = (options | {"train_batch_size": 4 // accumulation // processes} for processes in (1, 2))
    through(train(*open_all(home, method=options.get("method", "full")), settings(**alone), tmp_path / "one"))
    # what `accelerate launch` starts on GPUs; on a CPU it starts one process alone, whatever is asked for
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [job.__file__, str(home), str(tmp_path / "two"), json.dumps(pair)]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.returncode == 0 and "one of 2" in process.stdout, process.stderr[-3000:]
    logs = [
        [json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()] for out in ("one", "two")
    ]
    for name in ("loss", "loss_outside"):
        assert [line[name] for line in logs[1]] == pytest.approx([line[name] for line in logs[0]], abs=1e-5)
    last = [load_file(tmp_path / out / "state" / "step-00000004" / "weights.safetensors") for out in ("one", "two")]
    for name, weight in last[0].items():
        torch.testing.assert_close(weight, last[1][name], rtol=1e-3, atol=1e-4)
