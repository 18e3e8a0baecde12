"""SIGINT and SIGTERM as a wish: the step is finished and the state saved before the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked the run to stop, None as long as none did."""

    signal_number: int | None = None


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is noted; a second one ends the program at once, as it does outside."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers; then signals are somebody else's business
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
