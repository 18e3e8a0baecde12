"""A process ends with its parent: real processes, and pipes that are closed as by a parent's death."""

import os
import signal
import subprocess
import sys

import pytest

TIED = """
import os, signal, sys, threading
from sapp_cli.training import parent
parent.PATIENCE = 0.1
{before}
parent.end_with_parent()
print(repr(sys.stdin.read()), os.environ.get(parent.TIED), flush=True)
threading.Event().wait(60)
"""


def start(before="", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", TIED.format(before=before)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))", 7),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 128 + signal.SIGTERM),
    ],
    ids=["at once", "in its own way", "though it ignores the signal"],
)
def test_it_ends_when_its_stdin_does(before, code):
    with start(before, SAPP_ENDS_WITH_STDIN="1") as process:
        assert process.stdout.readline() == "'' None\n"  # nothing to read, and nothing for processes below
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == code


def test_without_the_variable_stdin_is_as_ever():
    with start() as process:
        process.stdin.write("words")
        process.stdin.close()
        assert process.stdout.readline() == "'words' None\n"
        process.kill()
