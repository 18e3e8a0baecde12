"""Signals: what they raise, what they ask of a run, and that none is lost."""

import os
import signal
from contextlib import suppress

import pytest

from sapp_cli.training.interruption import Terminated, end_at_once, forget_signals, graceful_stop


@pytest.fixture(autouse=True)
def handlers():
    """Those of the tests' own process come back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    forget_signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_at_first_a_signal_ends_the_program(number, raised):
    end_at_once()
    with pytest.raises(raised):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_takes_the_first_as_a_wish_and_the_second_as_an_end(number):
    end_at_once()
    with graceful_stop() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        with pytest.raises((KeyboardInterrupt, Terminated)):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_somebody_swallowed_before_the_run_is_heeded_by_it(number):
    end_at_once()
    with suppress(BaseException):  # as where C code calls back
        os.kill(os.getpid(), number)
    with graceful_stop() as stop:
        assert stop.signal_number == number
    end_at_once()
    with graceful_stop() as stop:
        assert stop.signal_number is None


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_at_once()
    os.kill(os.getpid(), signal.SIGINT)
    with graceful_stop() as stop:
        assert stop.signal_number is None
