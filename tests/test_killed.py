"""SIGKILL at random moments over `merge` and over two processes of `accelerate launch`: the same command, the same bytes.

The other verbs: test_fit_killed, sampling/test_kill, training/test_resume.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import onbrand
from processes import begin, complete, contents, until

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(onbrand.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
TRAIN = ("--method", "lora", "--train_batch_size", 2, "--learning_rate", 1e-3, "--checkpointing_steps", 1)
STEPS = 10


@pytest.fixture(scope="module")
def brand(world: Path) -> Path:
    complete(["fit", world / "photos", "--model", world / "model", "--output_dir", world / "b", "--k", 4], world / "b")
    return world / "b"


@pytest.fixture(scope="module")
def lora(world: Path, brand: Path) -> Path:
    out = world / "lora"
    inputs = (world / "photos", "--model", world / "model", "--prior", brand, "--output_dir", out)
    complete(["train", *inputs, *TRAIN, "--max_train_steps", 2], world / "lora")
    return out


@pytest.fixture
def draw() -> Iterator[random.Random]:
    seed = random.randrange(2**32)
    print(f"moments from seed {seed}")
    yield random.Random(seed)


def family(out: Path) -> list[psutil.Process]:
    """The processes whose command names `out`, the first one first."""
    processes = psutil.process_iter(["cmdline", "create_time", "status"])
    own = [one for one in processes if str(out) in (one.info["cmdline"] or ()) and one.info["status"] != "zombie"]
    return sorted(own, key=lambda one: one.info["create_time"])


@pytest.mark.prove
def test_a_merge_killed_anywhere(lora: Path, tmp_path: Path, draw: random.Random) -> None:
    out, log, kills = tmp_path / "out", tmp_path / "log", []
    arguments = ["merge", lora, "--output_dir", out]

    def writes() -> bool:
        return out.is_dir() and any(out.glob(".*merged*"))

    start, run = time.monotonic(), begin(arguments, log)
    until(lambda: writes() or run.wait(0) is not None)
    loaded = time.monotonic()
    assert run.wait() == 0, run.errors
    whole, (loading, writing) = contents(out), (loaded - start, time.monotonic() - loaded)
    for number in range(20):
        shutil.rmtree(out)
        start = time.monotonic()
        if number < 4:  # with all imports
            command = [sys.executable, "-m", "onbrand", *map(str, arguments)]
            with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
                time.sleep(draw.uniform(0, 6))
                process.kill()
            code = process.returncode
        else:
            run = begin(arguments, log)
            if number % 4:
                until(lambda: writes() or run.wait(0) is not None)
            time.sleep(draw.uniform(0, writing if number % 4 else loading))
            run.kill()
            code = run.wait()
        kills.append((round(time.monotonic() - start, 3), code, sorted(os.listdir(out)) if out.exists() else None))
        complete(arguments, log)
        assert contents(out) == whole, kills[-1]
    print(*kills, sep="\n")
    assert sum(code == -signal.SIGKILL for _, code, _ in kills) > 10, "on a busy machine a run can end before its kill"


@pytest.mark.prove
def test_one_of_two_processes_of_accelerate_launch_or_all_killed_anywhere(
    world: Path, brand: Path, tmp_path: Path, draw: random.Random
) -> None:
    """Ten runs, each killed twice. Killed alone, the launcher leaves its two processes, which end the run."""
    out, kills = tmp_path / "out", []
    inputs = (world / "photos", "--model", world / "model", "--prior", brand, "--output_dir", out, "--device", "cpu")
    # --cpu starts one process, whatever --num_processes says (accelerate 1.15)
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_processes", 2]
    command += ["-m", "onbrand", "train", *inputs, *TRAIN, "--max_train_steps", STEPS]

    def launch() -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=log, stderr=log)

    def steps() -> int:
        return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0

    start = time.monotonic()
    launcher = launch()
    until(steps)
    first = time.monotonic()
    until(lambda: (out / "model").exists())
    imports, step = first - start, (time.monotonic() - first) / STEPS
    assert launcher.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    whole = contents(out)
    for number in range(10):
        shutil.rmtree(out)
        for target in ("one", draw.choice(["one", "all", "launcher"])):
            start, before, launcher = time.monotonic(), steps(), launch()
            if draw.random() < 0.75:
                until(lambda: launcher.poll() is not None or steps() != before)
                time.sleep(draw.uniform(0, step * (STEPS - steps())))
            else:
                time.sleep(draw.uniform(0, imports))
            processes = family(out)
            victims = {"one": processes[1:] and [draw.choice(processes[1:])], "launcher": processes[:1]}
            for victim in victims.get(target) or processes:
                victim.kill()
            kills.append((number, target, len(processes), round(time.monotonic() - start, 1), steps(), launcher.wait()))
            until(lambda: not family(out))
        launcher = launch()
        assert launcher.wait() == 0, (kills, (tmp_path / "log").read_text()[-3000:])
        until(lambda: not family(out))
        assert contents(out) == whole, kills
    print(*kills, sep="\n")
    assert sum(code != 0 for *_, code, _ in kills) > 15
