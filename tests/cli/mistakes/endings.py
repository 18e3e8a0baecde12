"""How a command of the table is run: in this process, in a shell with limits, or as several processes.

$ sapp …                                         in this process
$ NAME=VALUE sapp …                              the same, with this in its environment
$ WITHOUT=PACKAGE sapp …                         the same, where a package is not installed
$ ulimit -v …; sapp …                            by a shell, as all that has a > in it
$ torchrun --nproc-per-node N -m sapp_cli …      N processes, forked from one that has imported torch already
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.training.crew import run_processes

LAUNCHER = ("torchrun", "--nproc-per-node")


def run(command: str, sapp) -> Ran:
    """What the command, typed in the current folder, ends with; of several processes what they say together."""
    words = shlex.split(command)
    if words[0] == "ulimit" or ">" in words:
        return _by_a_shell(command)
    if tuple(words[:2]) == LAUNCHER:
        return _by_processes(int(words[2]), words[5:])
    assignments = [word for word in words[: words.index("sapp")] if "=" in word]
    with pytest.MonkeyPatch.context() as patch, _without(patch, assignments):
        for name, _, value in (word.partition("=") for word in assignments):
            patch.setenv(name, value)
        return sapp(*words[len(assignments) + 1 :])


def _by_a_shell(command: str) -> Ran:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    program = f"{shlex.quote(sys.executable)} -m sapp_cli "
    command = re.sub(r"(^|; )sapp ", lambda found: found[1] + program, command)
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def _by_processes(count: int, words: list[str]) -> Ran:
    ended = run_processes(count, _enter, str(Path.cwd()), words)
    codes = {end.code for end in ended if end.code >= 0}  # a negative one is a signal, of which nobody can tell
    assert len(codes) == 1, ended
    return Ran(codes.pop(), "", "".join(end.said for end in ended))


def _enter(folder: str, words: list[str]) -> None:
    from sapp_cli.cli.main import main

    os.chdir(folder)
    sys.argv = ["sapp", *words]
    main()


@contextmanager
def _without(patch: pytest.MonkeyPatch, assignments: list[str]) -> Iterator[None]:
    """Within it the package that `WITHOUT=` names is nowhere to be found."""
    hidden = {word.removeprefix("WITHOUT=") for word in assignments if word.startswith("WITHOUT=")}
    if hidden:
        find = importlib.machinery.PathFinder.find_spec

        def find_others(name, path=None, target=None):
            return None if name.partition(".")[0] in hidden else find(name, path, target)

        patch.setattr(importlib.machinery.PathFinder, "find_spec", find_others)
        for name in hidden:
            patch.delitem(sys.modules, name, raising=False)
    yield


def matches(said: str, message: str) -> bool:
    """True if this was said; # in a message is any number or time."""
    return re.fullmatch(re.escape(message).replace(r"\#", r"[-+.,\deinfa]+(?: [mµ]?s)?"), said) is not None
