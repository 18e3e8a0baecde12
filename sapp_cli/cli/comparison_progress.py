"""A comparison as a person likes to watch it: a line for each cell, and in a terminal what the running ones do now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from sapp_cli.cli.console import LiveLines, stderr

if TYPE_CHECKING:
    from sapp_cli.training.loop import StepRecord

TAIL = 500  # bytes at the end of a log, in which its last line is


class ComparisonWatcher:
    """Says what happens, on stderr. Use it as a context manager: leaving it restores the terminal."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._console = stderr()
        self._live: Live | None = None

    def __enter__(self) -> ComparisonWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.running({})

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            with suppress(OSError):  # a terminal that goes away does not end the comparison here, but by its signal
                self._console.print(text)

    def detail(self, text: str) -> None:
        """One line, with --verbose."""
        if self._verbose:
            self.say(text)

    def step(self, record: StepRecord) -> None:
        """Nothing: cells are processes of their own, and their steps stand in their logs."""

    def running(self, logs: Mapping[str, Path]) -> None:
        """In a terminal, a line below the others for each running cell: its name and what it said last."""
        if self._quiet or not self._console.is_terminal:
            return
        with suppress(OSError):
            if not logs:
                if self._live is not None:
                    self._live.stop()
                    self._live = None
                return
            if self._live is None:
                self._live = Live(console=self._console, transient=True, refresh_per_second=2)
                self._live.start()
            lines = [Text(f"{name}  {last_line(log)}", no_wrap=True, overflow="ellipsis") for name, log in logs.items()]
            self._live.update(LiveLines(*lines))


def last_line(log: Path) -> str:
    """The last line of a file that somebody may be writing; empty where there is none yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
