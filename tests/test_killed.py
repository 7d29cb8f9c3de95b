"""SIGKILL at random moments over `merge` and two processes of `accelerate launch`: the same command, the same bytes.

The other verbs: test_fit_killed, test_ranks, sampling/test_kill, training/test_resume.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import onbrand
from processes import Run, begin, command, complete, contents, prepare, until

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(onbrand.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
STEPS = 10


@pytest.fixture(scope="module")
def home(world: Path) -> Path:
    return prepare(world)


@pytest.fixture
def draw() -> random.Random:
    seed = random.randrange(2**32)
    print(f"moments from seed {seed}")
    return random.Random(seed)


def family(out: Path) -> list[psutil.Process]:
    """The processes whose command names `out`, the first one first."""
    processes = psutil.process_iter(["cmdline", "create_time", "status"])
    own = [one for one in processes if str(out) in (one.info["cmdline"] or ()) and one.info["status"] != "zombie"]
    return sorted(own, key=lambda one: one.info["create_time"])


@pytest.mark.prove
def test_a_merge_killed_anywhere(home: Path, tmp_path: Path, draw: random.Random) -> None:
    out, log, kills = tmp_path / "out", tmp_path / "log", []
    arguments = command("merge", home, out)

    def writes(run: Run) -> bool:
        return (out.is_dir() and any(out.glob(".*unfinished*"))) or run.wait(0) is not None

    start, run = time.monotonic(), begin(arguments, log)
    until(writes, run)
    loaded = time.monotonic()
    assert run.wait() == 0, run.errors
    whole, (loading, writing) = contents(out), (loaded - start, time.monotonic() - loaded)
    while len(kills) < 20:
        shutil.rmtree(out)
        number, start = len(kills), time.monotonic()
        if number < 4:  # with all imports
            words = [sys.executable, "-m", "onbrand", *map(str, arguments)]
            with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
                time.sleep(draw.uniform(0, 6))
                process.kill()
            code: int | None = process.returncode
        else:
            run = begin(arguments, log)
            if number % 4:
                until(writes, run)
            time.sleep(draw.uniform(0, writing if number % 4 else loading))
            run.send(signal.SIGKILL)
            code = run.wait()
        if code == -signal.SIGKILL:  # a run may end before its moment
            there = sorted(os.listdir(out)) if out.exists() else None
            kills.append((round(time.monotonic() - start, 3), there))
        complete(arguments, log)
        assert contents(out) == whole, kills
    print(*kills, sep="\n")


@pytest.mark.prove
def test_one_of_two_processes_of_accelerate_launch_or_all_killed_anywhere(
    home: Path, tmp_path: Path, draw: random.Random
) -> None:
    """Ten runs, each killed twice. Killed alone, the launcher takes its two processes along."""
    out, kills = tmp_path / "out", []
    # --cpu starts one process, whatever --num_processes says (accelerate 1.15)
    launcher = Path(sys.executable).with_name("accelerate")
    words = [launcher, "launch", "--multi_gpu", "--num_processes", 2, "-m", "onbrand"]
    words += [*command("train", home, out), "--max_train_steps", STEPS, "--device", "cpu"]

    def launch() -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            return subprocess.Popen(list(map(str, words)), env=ENVIRONMENT, stdout=log, stderr=log)

    def steps() -> int:
        return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0

    def goes_on(launched: subprocess.Popen[bytes], before: int) -> bool:
        return steps() != before or launched.poll() is not None

    start, launched = time.monotonic(), launch()
    until(goes_on, launched, 0)
    first = time.monotonic()
    until(lambda: (out / "model").exists())
    imports, step = first - start, (time.monotonic() - first) / STEPS
    assert launched.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    whole = contents(out)
    while len(kills) < 20:
        shutil.rmtree(out)
        for target in ("one" if kills else "launcher", draw.choice(["one", "all", "launcher"])):
            start, launched = time.monotonic(), launch()
            if kills and draw.random() < 0.75:
                until(goes_on, launched, steps())
                time.sleep(draw.uniform(0, 0.9 * step * (STEPS - steps())))
            else:
                time.sleep(draw.uniform(0, imports))
            processes = family(out)
            victims = {"one": processes[1:] and [draw.choice(processes[1:])], "launcher": processes[:1]}
            for victim in victims.get(target) or processes:
                victim.kill()
            kill = (len(kills), target, len(processes), round(time.monotonic() - start, 1), steps())
            if launched.wait():  # else it ended before its moment
                kills.append(kill)
            until(lambda: not family(out))
        launched = launch()
        assert launched.wait() == 0, (kills, (tmp_path / "log").read_text()[-3000:])
        until(lambda: not family(out))
        assert contents(out) == whole, kills
    print(*kills, sep="\n")
