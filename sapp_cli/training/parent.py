"""A process that ends with its parent, even if the parent is killed.

The parent holds one end of a pipe, which the system closes when the parent ends; the child waits for that in a thread. Every
system has pipes. PR_SET_PDEATHSIG would serve on Linux only, and leave no second way for a child that does not heed SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

TIED = "SAPP_ENDS_WITH_STDIN"
"""A variable in the environment of a child: its stdin is a pipe that only its parent holds open."""
PATIENCE = 120
"""Seconds that a run has to save its state after SIGTERM."""


def end_with_parent() -> None:
    """If the environment says TIED, end when stdin does; what reads stdin reads nothing, and processes below are not tied."""
    if os.environ.pop(TIED, None) is None:
        return
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    end_after(lambda: os.read(pipe, 1), PATIENCE)


def end_after(wait: Callable[[], object], patience: float) -> None:
    """Begin to wait, in a thread; then send this process SIGTERM, and `patience` seconds later end it."""

    def end() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
