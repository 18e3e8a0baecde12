"""The consoles that verbs print with: rich draws tables, bars and colours, and the texts in them cannot steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment

from sapp_cli.cli.streams import stream_of
from sapp_cli.visible import harmless

NO_TERMINAL = 1000
"""Columns where nobody counts them: no table is cut or wrapped."""
ECHOES = 8
"""Columns that are left free for what a terminal writes itself: ^C, each time that it is pressed."""


class VisibleConsole(Console):
    """A console in which control characters of texts are escaped. A bracket in a text is a bracket, not markup."""

    def __init__(self, name: str, **options: Any) -> None:
        """`name`: stdout or stderr."""
        super().__init__(file=stream_of(name), highlight=False, markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


class _PlainLines(VisibleConsole):
    """A console for files and pipes: a line ends where its text does, not where rich has filled its column up to."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))


class LiveLines:
    """Lines that are drawn anew: they end before the terminal's right edge.

    A terminal writes ^C where the cursor stands, at the end of the last line. Behind a full line it does so on the next row,
    and whoever erases the lines by moving up stops one row too early.
    """

    def __init__(self, *lines: RenderableType) -> None:
        self._lines = Group(*lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._lines, options.update_width(max(1, options.max_width - ECHOES)))


def stdout() -> Console:
    """The console of the data; without a terminal it neither wraps nor colours nor fills lines up."""
    console = VisibleConsole("stdout")
    return console if console.is_terminal else _PlainLines("stdout", width=NO_TERMINAL, soft_wrap=True)


def stderr() -> Console:
    """The console of messages and progress; lines are left to the terminal to wrap."""
    return VisibleConsole("stderr", soft_wrap=True)
