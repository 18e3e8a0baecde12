"""A function in a process of its own: what it imports and reads is gone when it is done; lines and errors come through.

It starts as a fresh Python, so nothing of this process lies in it but the arguments. It ends if this process is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sapp_cli.cli.streams import prepare
from sapp_cli.errors import ResourceError
from sapp_cli.training.interruption import Terminated
from sapp_cli.training.parent import end_after

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

OF_TERMINALS = {number for name in ("SIGINT", "SIGHUP") if (number := getattr(signal, name, None))}
SAFE_PATH = "PYTHONSAFEPATH"
PATIENCE = 5  # seconds that the other process has to end: an import may swallow the exception of a signal
CONTEXT: BaseContext = multiprocessing.get_context("spawn")  # not fork: libraries of this process may have threads


class Hearer(Protocol):
    """Whoever is told the lines."""

    def say(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...


class _ThereTraceback(Exception):
    """Where an error came from, in the other process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Relay:
    """The watcher of the other process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, text: str) -> None:
        self._connection.send(("say", text, ""))

    def detail(self, text: str) -> None:
        self._connection.send(("detail", text, ""))

    def step(self, record: object) -> None:
        """Nothing: no run goes on there."""


def call_apart(
    function: Callable[Concatenate[Any, Arguments], Result],
    watcher: Hearer,
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Result:
    """What `function(watcher, *arguments)` returns or raises, run in another process, whose lines `watcher` gets.

    All of it is pickled, on the way there and back. What is printed there goes to stderr. Raises ResourceError where the
    process is gone without an answer. An exception that comes here meanwhile, such as that of a signal, ends it.
    """
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(there, function, arguments, named))  # type: ignore[attr-defined]
    _start(process)
    there.close()
    answered = False
    try:
        while True:
            kind, value, told = here.recv()
            answered = kind in ("returned", "raised")
            if kind == "returned":
                return value  # type: ignore[no-any-return]
            if kind == "raised":
                raise value from _ThereTraceback(told)
            getattr(watcher, kind)(value)
    except EOFError:
        process.join()
        raise ResourceError(
            "the process that looks at checkpoint and data is gone without a word: killed, or out of memory"
        ) from None
    finally:
        here.close()  # first, lest it waits for somebody to read its answer
        if not answered:
            process.terminate()
        process.join(PATIENCE)
        process.kill()
        process.join()


def _start(process: Any) -> None:
    """Start it, and what Python keeps beside it, without what a terminal tells all: this process hears it, and ends them."""
    with _without_the_current_folder():
        _start_unheard(process)


@contextmanager
def _without_the_current_folder() -> Iterator[None]:
    """A Python that starts within it looks for no module in the current folder (from 3.11 on)."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def _start_unheard(process: Any) -> None:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINALS)  # it has taken some of it back
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(connection: Connection, function: Callable[..., object], arguments: Any, named: Any) -> None:
    """The other process."""
    signal.signal(signal.SIGTERM, _end_once)
    parent = multiprocessing.parent_process()
    assert parent is not None, "started by call_apart"
    end_after(lambda: wait([parent.sentinel]), PATIENCE)
    prepare()
    with suppress(OSError):
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        answer = ("returned", function(_Relay(connection), *arguments, **named), "")
    except BaseException as error:
        answer = ("raised", _that_travels(error), traceback.format_exc())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be stopped but the clearing up
    with suppress(OSError):  # nobody waits any more
        connection.send(answer)


def _end_once(number: int, frame: object) -> None:
    """The signal may come from the system, for all processes of a job, and then from the one that waits."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def _that_travels(error: BaseException) -> BaseException:
    """The error, or its text where it cannot be pickled and read again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
