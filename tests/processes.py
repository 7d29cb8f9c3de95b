"""Runs of the command line, each in a process of its own: to its end, killed, beside another, on a disk that is full."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
"""Forks processes that have imported already what takes seconds. Python has one server: all tests share this one."""
SERVER.set_forkserver_preload(["processes", "onbrand.api._inputs", "onbrand.comparison.jobs", "onbrand.training.loop"])
UNEQUAL = {"log.jsonl": ("seconds",), "run.json": ("peak_memory_gb", "peak_memory_of")}
"""What two runs of the same do not have in common: times and memory."""


@dataclass(frozen=True)
class Run:
    """`onbrand ARGUMENTS` in a process; what it prints is beside `log`."""

    process: BaseProcess
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, if the run has not ended."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code; -9 if it was killed, None if it has not ended within so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def errors(self) -> list[str]:
        """The lines of stderr but bars and warnings."""
        lines = self.log.with_suffix(".err").read_text().replace("\r", "\n").splitlines()
        noise = ("onbrand: warning: ", "onbrand: note: ")
        return [line for line in lines if line.strip() and "it/s]" not in line and not line.startswith(noise)
                and "?, ?" not in line and "| " not in line and not line.startswith("fit: ")]  # fmt: skip


def _main(arguments: Sequence[str], log: Path) -> None:
    """The child: the command line, in one thread."""
    for number, ending in ((1, ".out"), (2, ".err")):
        with log.with_suffix(ending).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
    import torch

    from onbrand.cli import main

    torch.set_num_threads(1)
    try:
        code = main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    os._exit(code)


def begin(arguments: Sequence[object], log: Path) -> Run:
    """A run that has begun."""
    process = SERVER.Process(target=_main, args=([str(word) for word in arguments], log))
    process.start()
    return Run(process, log)


def complete(arguments: Sequence[object], log: Path) -> Run:
    """A run to its end, which must be a good one."""
    run = begin(arguments, log)
    assert run.wait() == 0, run.errors
    return run


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    """File -> its bytes, without times, memory, what is `but`, and the cache's marks, which hold times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("digests-"))
    return {name: _equal(path) for path in files if not (name := str(path.relative_to(folder))).startswith(but)}


def _equal(path: Path) -> bytes:
    """A file's bytes without what two runs of the same do not have in common."""
    if path.name not in UNEQUAL:
        return path.read_bytes()
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    values = [json.loads(text) for text in texts]
    return json.dumps([{k: v for k, v in value.items() if k not in UNEQUAL[path.name]} for value in values]).encode()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.001)
