"""A function in a process of its own: what it says, returns and raises comes through; it ends with whoever waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress

import pytest

from sapp_cli.cli import apart
from sapp_cli.cli.apart import call_apart
from sapp_cli.errors import RecipeError, ResourceError, SettingError
from tests.training.crew import FORKS, ReadyForks

OWN_CONTEXT = apart.CONTEXT


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(apart, "CONTEXT", ReadyForks)


class Lines:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(("say", text))

    def detail(self, text):
        self.told.append(("detail", text))


def speak(watcher, first, *, second):
    watcher.say(first)
    watcher.detail(second)
    return os.getpid(), first + second


def test_lines_come_as_they_are_said_and_then_the_answer():
    lines = Lines()
    process, answer = call_apart(speak, lines, "one", second="two")
    assert lines.told == [("say", "one"), ("detail", "two")]
    assert answer == "onetwo"
    assert process != os.getpid()


def test_it_starts_as_a_fresh_python_and_prints_to_stderr(monkeypatch, capfd):
    """The only test here with the way that the program itself takes."""
    monkeypatch.setattr(apart, "CONTEXT", OWN_CONTEXT)
    assert call_apart(print_what_it_is, Lines())
    assert capfd.readouterr() == ("", "fresh\n")


def print_what_it_is(watcher):
    print("fresh" if sys.stdin.closed or sys.stdin.read() == "" else "with a stdin of somebody's")
    return True


def fail(watcher, error):
    raise error


class TwoPartsError(Exception):
    """Pickled, but not read again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    "error",
    [
        SettingError([("data.files.train", "no file"), ("train.steps", "too few")]),
        RecipeError(["recipe.yaml:1: train: wrong", "recipe.yaml:2: data: wrong"]),
        MemoryError("Unable to allocate 4 GiB"),
        KeyboardInterrupt(),
    ],
)
def test_errors_are_raised_here_as_they_were_there(error):
    with pytest.raises(type(error)) as caught:
        call_apart(fail, Lines(), error)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)
    assert ", in fail\n" in "".join(traceback.format_exception(caught.value))


def test_an_error_that_does_not_travel_is_told_by_its_text():
    with pytest.raises(RuntimeError, match=r"^TwoPartsError: one and two$"):
        call_apart(fail_in_two_parts, Lines())


def fail_in_two_parts(watcher):
    raise TwoPartsError("one", "two")


def test_a_process_that_is_killed():
    with pytest.raises(ResourceError, match="is gone without a word: killed, or out of memory"):
        call_apart(kill_itself, Lines())


def kill_itself(watcher):
    os.kill(os.getpid(), signal.SIGKILL)


class Interrupting(Lines):
    """Presses Ctrl-C as soon as it hears something: the number of the other process."""

    def say(self, text):
        super().say(text)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_ctrl_c_ends_both():
    lines = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        call_apart(wait_long, lines)
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines.told[0][1]), 0)


def wait_long(watcher):
    watcher.say(str(os.getpid()))
    with suppress(KeyboardInterrupt):  # as an import may
        time.sleep(60)


WAITING = """
import multiprocessing, sys, time
from sapp_cli.cli.apart import call_apart
from sapp_cli.training.interruption import Terminated, end_at_once

class Lines:
    def say(self, text):
        print(text, flush=True)

def wait(watcher):
    lock = multiprocessing.Lock()  # Python complains of those that nobody clears away
    watcher.say("ready")
    time.sleep(60)

if __name__ == "__main__":
    end_at_once()
    try:
        call_apart(wait, Lines())
    except (KeyboardInterrupt, Terminated) as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_a_signal_for_all_processes_is_heard_once(tmp_path, number, name):
    """As a terminal and a batch system send it; nobody but the first process has anything to say about it."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, tmp_path / "waiting.py"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        assert process.communicate(timeout=60) == (f"{name}\n", "")


def outlive(path):
    """Call `linger` apart and be killed while it runs."""
    call_apart(linger, Lines(), path)


def linger(watcher, path):
    path.write_text(str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        path.with_name("ended").write_text("")


def test_it_ends_if_the_process_that_waits_is_killed(tmp_path):
    process = FORKS.Process(target=outlive, args=(tmp_path / "number",))
    process.start()
    wait_until((tmp_path / "number").exists)
    process.kill()
    process.join()
    wait_until((tmp_path / "ended").exists)


def wait_until(condition):
    for _ in range(3_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")
