"""Runs of the command line, each in a process of its own: to its end, killed, beside another, on a full disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
"""Forks processes that have imported already what takes seconds. Python has one server: all tests share this one."""
SERVER.set_forkserver_preload(["processes", "onbrand.api._inputs", "onbrand.comparison.jobs", "onbrand.training.loop"])
UNEQUAL = {"log.jsonl": ("seconds",), "run.json": ("peak_memory_gb", "peak_memory_of")}
"""What two runs of the same do not have in common: times and memory."""
NOISE = re.compile(r"onbrand: (warning|note): |[\w ]+: +\d+(%\|| batches )")
"""Lines on stderr that are no error: warnings and bars."""
SMALL = ("--train_batch_size", 2, "--learning_rate", 1e-3)
FOLDERS = {"diagnose": "brand", "check": "images", "report": "images"}
"""Verbs that write into a folder which is there -> which one of `home`."""


@dataclass(frozen=True)
class Run:
    """`onbrand ARGUMENTS` in a process; what it prints is beside `log`."""

    process: BaseProcess
    log: Path

    def send(self, number: int) -> None:
        """A signal, if the run has not ended."""
        if self.process.pid and self.process.is_alive():
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
        """The lines on stderr but warnings and bars."""
        lines = re.split(r"[\r\n]+", self.log.with_suffix(".err").read_text())
        return [line for line in lines if line.strip() and not NOISE.match(line)]


def _main(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """The child: the command line, in one thread."""
    os.environ.update(environment)
    for number, ending in ((1, ".out"), (2, ".err")):
        with log.with_suffix(ending).open("wb") as file:
            os.dup2(file.fileno(), number)
    import torch

    from onbrand.cli import main

    torch.set_num_threads(1)
    code = 1
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def begin(arguments: Sequence[object], log: Path, environment: Mapping[str, str] = {}) -> Run:  # noqa: B006  (read)
    """A run that has begun."""
    process = SERVER.Process(target=_main, args=([str(word) for word in arguments], log, environment))
    process.start()
    return Run(process, log)


@contextmanager
def launched(arguments: Sequence[object], log: Path, count: int = 2) -> Iterator[list[Run]]:
    """The processes of one run, begun by a launcher that ends none; what each prints is beside `log`-<rank>."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    runs = [
        begin(arguments, log.with_name(f"{log.name}-{rank}"), {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        yield runs
    finally:
        for run in runs:  # what still waits for another
            run.send(signal.SIGKILL)
        del store


def complete_together(arguments: Sequence[object], log: Path, count: int = 2) -> list[Run]:
    """The processes of one run to its end, which must be a good one."""
    with launched(arguments, log, count) as runs:
        assert [run.wait() for run in runs] == [0] * count, [run.errors for run in runs]
    assert not any(run.errors for run in runs)
    return runs


def complete(arguments: Sequence[object], log: Path) -> Run:
    """A run to its end, which must be a good one."""
    run = begin(arguments, log)
    assert run.wait() == 0, run.errors
    return run


def until(condition: Callable[..., object], *arguments: object) -> None:
    """Waits until `condition` holds; for two minutes at most."""
    end = time.monotonic() + 120
    while not condition(*arguments):
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.001)


def contents(folder: Path) -> dict[str, bytes]:
    """File -> its bytes, without times, memory, and the cache's marks, which hold times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("digests-"))
    return {str(path.relative_to(folder)): _equal(path) for path in files}


def _equal(path: Path) -> bytes:
    """A file's bytes without what two runs of the same do not have in common."""
    if path.name not in UNEQUAL:
        return path.read_bytes()
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    values = [json.loads(text) for text in texts]
    return b"".join(
        json.dumps({key: item for key, item in value.items() if key not in UNEQUAL[path.name]}).encode() + b"\n"
        for value in values
    )


def prepare(home: Path) -> Path:
    """In a world (`worlds.write_world`): brand/, lora/, a run, and images/; the world."""
    for name, verb in (("brand", "fit"), ("lora", "train"), ("images", "generate")):
        complete(command(verb, home, home / name), home / name)
    return home


def command(verb: str, home: Path, out: Path) -> list[object]:
    """A short run of a verb that writes into `out`."""
    inputs: list[object] = [home / "photos", "--model", home / "model", "--output_dir", out]
    prior = ("--prior", home / "brand")
    training = ("--method", "lora", "--max_train_steps", 4, "--checkpointing_steps", 1, "--checkpoints_total_limit", 9)
    few = ("--num_inference_steps", 2)
    commands: dict[str, list[object]] = {
        "fit": [*inputs, "--k", 4],
        "diagnose": [out],
        "train": [*inputs, *prior, *SMALL, *training, "--validation_steps", 2, "--num_validation_images", 1],
        "generate": ["--prompt", "block, red", *inputs[1:], *prior, *few, "--num_images_per_prompt", 12, "--start",
                     "mean", "--trace", 1, "--batch_size", 4],
        "check": [out, "--against", home / "photos", *prior],
        "compare": [*inputs, *prior, *SMALL, *few, "--max_train_steps", 2, "--methods", "stock/mean", "plain/mean"],
        "merge": [home / "lora", "--output_dir", out],
        "export": [home / "brand", "--format", "comfyui", "--output_dir", out],
        "report": [out],
        "data": ["garments", "--output_dir", out, "--num_images", 12],
    }  # fmt: skip
    return [verb, *commands[verb]]
