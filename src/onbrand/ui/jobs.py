"""Verbs as jobs: each a process of its own, one at a time, in the order in which they were asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onbrand.errors import OnbrandError
from onbrand.io import append, discard, plain

TAIL = 64_000
"""Bytes of a log that are read: its end."""
BAR = re.compile(
    r"(?P<what>[\w ]+?): +\d+%\|.*\| *(?P<done>[\d.,]+)/(?P<all>[\d.,]+) "
    r"\[(?P<times>[^,\]]*)(, *(?P<rate>[^,\]]+))?"
)
"""tqdm's line."""
PATIENCE = 20.0
"""Seconds that a stopped job has to end by itself."""


@dataclass
class Job:
    """One thing to do: commands of onbrand, one after the other until one fails."""

    title: str
    """In words, as "fit"."""
    brand: str
    commands: Sequence[Sequence[str]]
    """Each the words after `python -m`."""
    log: Path
    """What the commands say."""
    state: Literal["waits", "runs", "done", "failed", "stopped"] = "waits"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def lines(self) -> list[str]:
        """What it has said so far, without its progress bars: the end of it."""
        return [line for line in self._text() if line.strip() and not BAR.match(line)]

    def progress(self) -> tuple[str, float, str] | None:
        """The last bar: what is done, the share in [0, 1], and how many, the rate, the time left in words."""
        for line in reversed(self._text()):
            if bar := BAR.match(line):
                total = float(bar["all"].replace(",", ""))
                left = bar["times"].partition("<")[2]
                words = f"{bar['done']} of {bar['all']}" + (f", {bar['rate']}" if bar["rate"] else "")
                words += f", {left} left" if left and "?" not in left else ""
                return bar["what"], float(bar["done"].replace(",", "")) / total if total else 0.0, words
        return None

    def _text(self) -> list[str]:
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL))
            return re.split(r"[\r\n]+", file.read().decode(errors="replace"))


class Jobs:
    """The queue. A thread works through it; a page that is closed or loaded anew changes nothing.

    Made in the main thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """In which the commands run, and the logs lie."""
        self.list: list[Job] = []
        """All since the app began, in their order."""
        self._changed = threading.Condition()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun by a script's `&`: jobs would heed no stop either
            signal.signal(signal.SIGINT, lambda *_: None)
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, title: str, brand: str, commands: Sequence[Sequence[str]], log: Path) -> Job:
        """A job at the end of the queue. OnbrandError: the same one waits or runs already."""
        with self._changed:
            if any(job.log == log and job.state in ("waits", "runs") for job in self.list):
                raise OnbrandError("option", f"{title} of {brand} waits or runs already: see the top of the page")
            job = Job(title, brand, commands, log)
            self.list.append(job)
            self._changed.notify_all()
        return job

    @property
    def running(self) -> Job | None:
        """The one that runs."""
        return next((job for job in self.list if job.state == "runs"), None)

    @property
    def waiting(self) -> list[Job]:
        """Those that wait."""
        return [job for job in self.list if job.state == "waits"]

    def last(self, brand: str | None = None) -> Job | None:
        """The one that ended last, of that brand."""
        ended = (job for job in reversed(self.list) if job.state in ("done", "failed", "stopped"))
        return next((job for job in ended if brand in (None, job.brand)), None)

    def stop(self) -> str:
        """Interrupts the one that runs, as Ctrl-C does: what it has made stays. Without one, empties the queue."""
        with self._changed:
            job = self.running
            if job is None:
                waiting = self.waiting
                for one in waiting:
                    one.state = "stopped"
                return f"{len(waiting)} waiting taken from the queue" if waiting else "nothing runs"
            job.state = "stopped"
            process = job.process
        if process is not None:
            process.send_signal(signal.SIGINT)
            threading.Timer(PATIENCE, process.kill).start()  # a signal to a process that has ended is none
        return f"{job.title} of {job.brand} stops; the same button goes on from there"

    def end(self) -> None:
        """Interrupts what runs, and waits until it has ended."""
        with self._changed:
            for job in self.waiting:
                job.state = "stopped"
            running = self.running
        if running is not None and running.process is not None:
            self.stop()
            running.process.wait()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self.waiting))
                job = self.waiting[0]
                job.state = "runs"
            code = self._run(job)
            with self._changed:
                if job.state == "runs":
                    job.state = "failed" if code else "done"

    def _run(self, job: Job) -> int:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        discard(job.log)
        with append(job.log) as log:
            for command in job.commands:
                with self._changed:
                    if job.state != "runs":
                        return 1
                    job.process = subprocess.Popen(
                        [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        cwd=self.folder, env=environment,
                    )  # fmt: skip
                if code := job.process.wait():
                    return code
        return 0


def said(job: Job) -> str:
    """What a job has said, plain: its last line, and its warnings; of one that failed its errors, or all of the end."""
    lines = list(dict.fromkeys(job.lines()))
    if job.state == "failed":
        lines = [line for line in lines if line.startswith("onbrand: error:")] or lines[-12:]
    else:
        lines = [line for line in lines[:-1] if line.startswith("onbrand: warning:")] + lines[-1:]
    return "\n".join(plain(line.removeprefix("onbrand: ")) for line in lines)
