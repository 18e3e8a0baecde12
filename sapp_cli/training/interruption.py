"""SIGINT and SIGTERM: an exception at first, so that what was begun is cleaned up; while a run trains, a wish.

Then the step is finished and the state saved before the run ends. An exception that comes while a library is being imported, or
out of a callback of C code, may be swallowed there; so what was received is noted, and the run that begins later heeds it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM."""


_received: list[int] = []


def end_at_once() -> None:
    """From here on SIGINT raises KeyboardInterrupt and SIGTERM Terminated; a SIGINT that is ignored stays so."""
    forget_signals()
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def forget_signals() -> None:
    """What was received has been heeded."""
    _received.clear()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@dataclass
class StopRequest:
    """The signal that asked the run to stop, None as long as none did."""

    signal_number: int | None = None


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is noted; a second one ends the program at once, as it does outside.

    One that came before and ended nothing counts as the first.
    """
    request = StopRequest(_received[-1] if _received else None)
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
