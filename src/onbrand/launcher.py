"""Processes that `accelerate launch` or torchrun started together end together."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading

from onbrand.ranks import is_first_to_say, rank


def end_with_launcher() -> None:
    """Watch the launcher of this process, if it has one; of several processes, the first one prints and draws bars.

    A launcher that is killed alone takes along what its processes find each other by: until they have, they would wait
    for half an hour, and keep the lock of their folder. One that sees a process end stops the others, which may be
    waiting in a library that heeds no signal.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if rank() > 0:
        sys.stdout = io.StringIO()
        os.environ["TQDM_DISABLE"] = "1"
    signals, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_watch, args=(os.getppid(), signals), daemon=True).start()


def _watch(launcher: int, signals: int) -> None:
    while os.getppid() == launcher:
        if select.select([signals], [], [], 0.5)[0] and signal.SIGTERM in os.read(signals, 64):
            _end("its launcher has stopped this run, or another process of it has ended", is_first_to_say("error"))
    _end("the launcher has ended, and its processes with it", os.environ.get("LOCAL_RANK", "0") == "0")


def _end(reason: str, says: bool) -> None:
    if says:
        print(f"onbrand: error: {reason}: the same command goes on", file=sys.stderr, flush=True)
    os._exit(1)  # as if killed, wherever it is: every file is whole at any moment
