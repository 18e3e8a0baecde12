"""stdin, stdout and stderr as they are given: closed, full, a pipe that nobody reads, an encoding that lacks letters."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

PLAIN = {
    "×": "x",
    "–": "-",
    "−": "-",
    "→": "->",
    "≤": "<=",
    "±": "+-",
    "µ": "u",
    "…": "...",
    "·": "-",
    "\N{NO-BREAK SPACE}": " ",
}
"""What sapp writes itself, for those whose encoding does not have it."""


def prepare() -> None:
    """See to it that whatever is printed can be: a closed stream swallows it, a letter that an encoding lacks is replaced."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for good
    codecs.register_error("sapp", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="sapp")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Letters that are like them, else their numbers as JSON writes them."""
    assert isinstance(error, UnicodeEncodeError), "this is about writing"
    place = error.start
    letter = error.object[place]  # one at a time: the next one is asked for again
    pair = letter.encode("utf-16-be", "surrogatepass").hex()
    return PLAIN.get(letter) or "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4)), place + 1


def drop_stdout() -> None:
    """Print no more: whoever read stdout is gone, or it takes nothing. Python would complain once more when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
