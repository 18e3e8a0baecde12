"""stdin, stdout and stderr as they are given: closed, full, a pipe that nobody reads, an encoding that lacks letters.

Whatever is printed passes here, or through the consoles of console.py: control characters that come out of files, libraries
or names are escaped in both places, so none reaches a terminal.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO, cast

from sapp_cli.visible import harmless

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
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sapp")
        if not isinstance(stream, Visible):
            setattr(sys, name, Visible(stream))


class Visible:
    """A stream in which control characters are escaped, in everything that is printed; otherwise the stream it is made of.

    A carriage return at the beginning of what is written passes: progress bars of libraries draw their line anew with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """The number of characters that were taken: all."""
        again = "\r" if text.startswith("\r") else ""
        self.stream.write(again + harmless(text[len(again) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @property
    def rich_proxied_file(self) -> TextIO:
        """Where consoles of rich write, which colour what they print: those of typer, for its help."""
        return self.stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stream_of(name: str) -> TextIO:
    """The stream, stdout or stderr, as the terminal sees it, for those who escape by themselves."""
    stream = getattr(sys, name)
    return cast("TextIO", getattr(stream, "rich_proxied_file", stream))


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Letters that are like them, else their numbers as JSON writes them; a byte of a file's name as `\\xff`."""
    assert isinstance(error, UnicodeEncodeError), "this is about writing"
    place = error.start
    letter = error.object[place]  # one at a time: the next one is asked for again
    if "\udc80" <= letter <= "\udcff":
        return harmless(letter), place + 1
    pair = letter.encode("utf-16-be", "surrogatepass").hex()
    return PLAIN.get(letter) or "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4)), place + 1


def drop_stdout() -> None:
    """Print no more: whoever read stdout is gone, or it takes nothing. Python would complain once more when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
