"""Processes that `accelerate launch` or torchrun started together end together."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
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
    pair = socket.socketpair()  # a signal comes out of the first as its number, whatever this process waits for
    pair[1].setblocking(False)
    signal.set_wakeup_fd(pair[1].fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_watch, args=(os.getppid(), pair), daemon=True).start()


def _watch(launcher: int, pair: tuple[socket.socket, socket.socket]) -> None:
    while os.getppid() == launcher:
        if select.select(pair[:1], [], [], 0.5)[0] and signal.SIGTERM in pair[0].recv(64):
            _end("another process of this run has ended, or its launcher was stopped", is_first_to_say("error"))
    _end("the launcher has ended, and its processes with it", os.environ.get("LOCAL_RANK", "0") == "0")


def _end(reason: str, says: bool) -> None:
    if says:
        print(f"onbrand: error: {reason}: the same command goes on", file=sys.stderr, flush=True)
    os._exit(1)  # as if killed, wherever it is: every file is whole at any moment
