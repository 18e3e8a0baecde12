"""Ctrl-C in a real terminal: one message, on a line of its own, and the cursor where a shell's prompt belongs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

import pytest

from tests.training.crew import FORKS

PATIENCE = 60  # seconds
COLUMNS = 100
LONG = ["--steps", "100000", "--set", "train.evaluate_every=null", "--set", "train.save_minutes=60"]


def enter(terminal, folder, words):
    """What a process does that is the first of this terminal."""
    import torch

    from sapp_cli.cli.main import main

    os.setsid()
    place = os.open(terminal, os.O_RDWR)  # the first that a new session opens is its own
    for stream in (0, 1, 2):
        os.dup2(place, stream)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(stream, mode) for stream, mode in enumerate("rww"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background had it ignored
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, COLUMNS, 0, 0))
    os.environ.update(TERM="xterm", COLUMNS=str(COLUMNS), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = ["sapp", *words]
    main()


def interrupted(folder, words, sign):
    """(exit code, all that the terminal was sent) of a command that gets a Ctrl-C once it has shown the sign."""
    master, slave = pty.openpty()
    process = FORKS.Process(target=enter, args=(os.ttyname(slave), str(folder), [str(word) for word in words]))
    process.start()
    shown, pressed, end = "", False, time.monotonic() + PATIENCE
    while process.is_alive() or select.select([master], [], [], 0)[0]:
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"it does not end: {shown}")
        if select.select([master], [], [], 0.05)[0]:
            shown += os.read(master, 65536).decode()
        if not pressed and sign in shown:
            os.write(master, b"\x03")
            pressed = True
    process.join()
    os.close(master)
    os.close(slave)
    return process.exitcode, shown


def lines(shown):
    """The whole screen, from its top to the last row with anything on it or the cursor; in front of it the cursor's row.

    As xterm does it: what follows a full line is written on the next row.
    """
    screen, row, column = [[]], 0, 0
    for part in re.split(r"(\r|\n|\x1b\[[?\d;]*[A-Za-z]|[^\x1b])", shown):
        if part == "\n":
            row += 1
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part == "\x1b[2K":
            screen[row] = []
        elif part == "\x1b[K":
            del screen[row][column:]
        elif part and not part.startswith("\x1b"):
            if column == COLUMNS:
                row, column = row + 1, 0
            screen += [[] for _ in range(row + 1 - len(screen))]
            screen[row] += [" "] * (column + 1 - len(screen[row]))
            screen[row][column] = part
            column += 1
        screen += [[] for _ in range(row + 1 - len(screen))]
    texts = ["".join(letters).rstrip() for letters in screen]
    while len(texts) > row + 1 and not texts[-1]:
        texts.pop()
    return row, texts


@pytest.mark.parametrize(
    ("sent", "row", "screen"),
    [
        ("ab\rc\n\rd", 1, ["cb", "d"]),
        ("a" * 4 + "^C", 1, ["aaaa", "^C"]),  # a full line stays, and what follows is below it
        ("one\r\ntwo\r\x1b[1A\x1b[2K", 0, ["", "two"]),
        ("one\r\ntwo\r\x1b[2K\x1b[1A\x1b[2Kthree", 0, ["three"]),
        ("abc\r\x1b[1mx\x1b[K", 0, ["x"]),
    ],
)
def test_the_screen_is_read_as_a_terminal_shows_it(monkeypatch, sent, row, screen):
    monkeypatch.setattr(sys.modules[__name__], "COLUMNS", 4 if "^C" in sent else 100)
    assert lines(sent) == (row, screen)


@pytest.mark.parametrize(
    ("command", "sign", "message"),
    [
        (["plan", "net.safetensors", "-r", "recipe.yaml", "--time", *LONG], "rehearsing", "nothing was written"),
        (["prune", "net.safetensors", "-r", "recipe.yaml", "-o", "out", *LONG], "· loss", "the state is saved"),
        (["bench", "net.safetensors", "--random-mask", "-r", "recipe.yaml", "--seconds", "9"], "batch 1", "nothing was"),
        (
            ["compare", "net.safetensors", "-r", "recipe.yaml", "-o", "many", "--methods", "acdc", "--seeds", "1", *LONG],
            "begins",
            "cells are done, the same command goes on",
        ),
    ],
    ids=["plan", "prune", "bench", "compare"],
)  # fmt: skip
def test_after_a_ctrl_c_there_is_one_message_and_a_new_line(digits, tmp_path, command, sign, message):
    for name in ("recipe.yaml", "digits.py", "data"):
        (tmp_path / name).symlink_to(digits / name)
    (tmp_path / "net.safetensors").symlink_to(digits / "dense.safetensors")
    code, shown = interrupted(tmp_path, command, sign)
    row, screen = lines(shown)
    assert code == 130, shown
    assert row == len(screen) - 1, screen  # nothing is below the cursor
    assert "" not in screen[:-1], screen  # no line that was drawn anew has left its place
    assert not any(sign in line for line in screen for sign in ("━", "steps/s", "elapsed", "· loss", "^C")), screen
    assert screen[-1] == ""
    # Where the folder's name is long the message takes several rows of the terminal.
    starts = [place for place, line in enumerate(screen) if line.startswith("sapp: interrupted")]
    assert len(starts) == 1, screen
    assert message in "".join(screen[starts[0] :]), screen
    assert sum("interrupted" in line for line in screen) == 1
    assert "Traceback" not in shown
