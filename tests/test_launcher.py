"""Processes of a launcher that was killed alone do not stay behind, wherever they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import onbrand

LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
WAITING = "from onbrand.launcher import end_with_launcher; end_with_launcher(); print('waits', flush=True); {}"
LOCKED = "import threading; threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()"


@pytest.mark.parametrize("waits", ["import time; time.sleep(30)", LOCKED])
def test_a_process_ends_with_its_launcher(waits: str) -> None:
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(Path(onbrand.__file__).parents[1])}
    words = [sys.executable, "-c", LAUNCHER, WAITING.format(waits)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        assert launcher.stdout and launcher.stderr
        child = int(launcher.stdout.readline())
        assert launcher.stdout.readline() == b"waits\n"
        launcher.kill()
        try:  # the child holds the pipes: they end with it
            assert b"launcher has ended" in launcher.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            os.kill(child, signal.SIGKILL)
            raise


@pytest.mark.parametrize("waits", ["import time; time.sleep(30)", LOCKED, "import os; os.read(os.pipe()[0], 1)"])
def test_a_process_that_its_launcher_stops_says_so(waits: str) -> None:
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(Path(onbrand.__file__).parents[1])}
    words = [sys.executable, "-c", WAITING.format(waits)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"waits\n"
        process.terminate()
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and out == b""
    assert errors.startswith(b"onbrand: error: another process of this run has ended") and errors.count(b"\n") == 1


def test_of_several_processes_the_first_prints() -> None:
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(Path(onbrand.__file__).parents[1])}
    words = [sys.executable, "-c", WAITING.format("from tqdm import tqdm; list(tqdm([1]))")]
    for rank, out in enumerate([b"waits\n", b""]):
        run = subprocess.run(
            words, env=environment | {"WORLD_SIZE": "2", "RANK": str(rank)}, capture_output=True, timeout=20
        )
        assert run.returncode == 0 and run.stdout == out and (b"100%" in run.stderr) == (rank == 0)


def test_a_process_of_its_own_outlives_who_started_it(tmp_path: Path) -> None:
    """As under nohup."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    environment["PYTHONPATH"] = str(Path(onbrand.__file__).parents[1])
    waits = f"import time; time.sleep(1.2); open({str(tmp_path / 'ended')!r}, 'w').close()"
    words = [sys.executable, "-c", LAUNCHER, WAITING.format(waits)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout and launcher.stdout.readline() and launcher.stdout.readline()
        launcher.kill()
        launcher.communicate(timeout=20)
    assert (tmp_path / "ended").exists()
