"""Processes that `accelerate launch` or torchrun started together end with it."""

from __future__ import annotations

import os
import sys
import threading
import time


def end_with_launcher() -> None:
    """Watch the launcher of this process, if it has one.

    Killed alone, it takes along what its processes find each other by: until they have, they would wait for half an
    hour, and keep the lock of their folder.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    print(
        "onbrand: error: the launcher has ended, and its processes with it: the same command goes on", file=sys.stderr
    )
    os._exit(1)  # as if killed, wherever it is: every file is whole at any moment
