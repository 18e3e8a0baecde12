"""Criteo's files as one long list of lines, read forwards, plain or gzipped, in pieces that start at any line.

One pass counts the lines and notes where every 65,536th begins; from then on a piece is found without reading what is before it
(in a gzipped file, reading over it).
"""

from __future__ import annotations

import gzip
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sapp_cli.errors import DataError
from sapp_cli.inputs.criteo_text import NEWLINE, Bytes

STRIDE = 1 << 16  # lines between two places that are noted
PIECE = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class LineIndex:
    """A file, counted."""

    path: Path
    lines: int
    places: tuple[int, ...]  # bytes before line 0, STRIDE, 2·STRIDE, …


def count_lines(path: Path) -> LineIndex:
    """The index of a file. Raises DataError for one that cannot be read, or has no line."""
    places, lines, size, last = [0], 0, 0, NEWLINE
    with open_text(path) as file:
        for piece in _pieces(file, path):
            ends = np.flatnonzero(piece == NEWLINE)
            first = STRIDE - lines % STRIDE  # so many ends until the next place
            places += (size + ends[first - 1 :: STRIDE] + 1).tolist()
            lines, size, last = lines + len(ends), size + len(piece), int(piece[-1])
    if last != NEWLINE:
        lines += 1
    if not lines:
        raise DataError(f"{path}: the file has no lines")
    return LineIndex(path, lines, tuple(places))


class Lines:
    """The lines of several files after one another. Asked for pieces in ascending order it reads every byte once."""

    _file: IO[bytes] | None = None

    def __init__(self, files: list[LineIndex]) -> None:
        self.files = files
        self._firsts = [0]  # number of each file's first line; at the end that of all
        for file in files:
            self._firsts.append(self._firsts[-1] + file.lines)
        self._process = os.getpid()
        self._file = None
        self._number, self._line = 0, 0  # where it stands: which file, before which of its lines
        self._rest: Bytes = np.empty(0, np.uint8)  # read already, from there on

    def __len__(self) -> int:
        return self._firsts[-1]

    def place(self, line: int) -> str:
        """How messages name a line: "day_0.gz:17", counted from 1."""
        number = bisect_right(self._firsts, line) - 1
        return f"{self.files[number].path}:{line - self._firsts[number] + 1}"

    def read(self, first: int, count: int) -> Bytes:
        """The bytes of lines `first` … `first + count − 1`, every one with its newline."""
        parts = []
        while count:
            number = bisect_right(self._firsts, first) - 1
            here = min(count, self._firsts[number + 1] - first)
            parts.append(self._read(number, first - self._firsts[number], here))
            first, count = first + here, count - here
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _read(self, number: int, first: int, count: int) -> Bytes:
        """So many lines of one file."""
        self._go_to(number, first)
        parts: list[Bytes] = []
        wanted = count
        while wanted:
            rest = self._rest
            ends = np.flatnonzero(rest == NEWLINE)
            if len(ends) >= wanted:
                cut = int(ends[wanted - 1]) + 1
                parts.append(rest[:cut])
                self._rest, wanted = rest[cut:], 0
                break
            piece = self._next_piece(number)
            if piece is None:  # the last line of a file may lack its newline
                tail = len(rest) - (int(ends[-1]) + 1 if len(ends) else 0)
                if len(ends) + 1 != wanted or not tail:
                    raise DataError(f"{self.files[number].path}: has become shorter since the run began")
                parts.append(np.append(rest, np.uint8(NEWLINE)))
                self._rest = rest[:0]
                break
            # Whole lines are put aside, so that a long piece is looked at once.
            cut = int(ends[-1]) + 1 if len(ends) else 0
            parts.append(rest[:cut])
            wanted -= len(ends)
            self._rest = np.concatenate((rest[cut:], piece))
        self._line = first + count
        return np.concatenate(parts)

    def _go_to(self, number: int, line: int) -> None:
        """Stand before a line of a file: where reading stopped, or at the last noted place before it."""
        if self._process != os.getpid():  # a copy of the process must not share the place in the file
            self._close()
            self._process = os.getpid()
        at = line // STRIDE * STRIDE
        if self._file is None or self._number != number or not at <= self._line <= line:
            self._close()
            path = self.files[number].path
            self._file, self._number, self._line = open_text(path), number, at
            self._rest = np.empty(0, np.uint8)
            try:
                self._file.seek(self.files[number].places[line // STRIDE])
            except (OSError, EOFError, zlib.error) as error:
                raise _unreadable(path, error) from error
        if self._line < line:
            skipped, self._line = line - self._line, line
            self._skip(number, skipped)

    def _skip(self, number: int, lines: int) -> None:
        while lines:
            ends = np.flatnonzero(self._rest == NEWLINE)
            if len(ends) >= lines:
                self._rest = self._rest[int(ends[lines - 1]) + 1 :]
                return
            lines -= len(ends)
            left = self._rest[int(ends[-1]) + 1 :] if len(ends) else self._rest
            piece = self._next_piece(number)
            if piece is None:
                raise DataError(f"{self.files[number].path}: has become shorter since the run began")
            self._rest = np.concatenate((left, piece))

    def _next_piece(self, number: int) -> Bytes | None:
        assert self._file is not None, "opened by _go_to"
        return next(_pieces(self._file, self.files[number].path), None)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: without the open file."""
        return {**self.__dict__, "_process": None, "_file": None}


def open_text(path: Path) -> IO[bytes]:
    """The file's text; gzip is known by its first two bytes, whatever the name. Raises DataError if it cannot be opened."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        return gzip.open(path) if is_gzip else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise _unreadable(path, error) from error


def _pieces(file: IO[bytes], path: Path) -> Iterator[Bytes]:
    while True:
        try:
            data = file.read(PIECE)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from error
        if not data:
            return
        yield np.frombuffer(data, np.uint8)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read: {reason}")
