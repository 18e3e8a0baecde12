"""Lines of Criteo's files as numbers: label, I1 … I13, C1 … C26 between tabs, nothing where a value is missing.

n: lines.  A whole chunk of bytes is taken apart at once with NumPy; a loop over lines in Python would take longer than
training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sapp_cli.errors import DataError

NUMBERS, CATEGORIES = 13, 26
FIELDS = 1 + NUMBERS + CATEGORIES
NAMES = ("label", *(f"I{i + 1}" for i in range(NUMBERS)), *(f"C{i + 1}" for i in range(CATEGORIES)))
LONGEST = 64  # characters of a field; real ones have 8 hexadecimal digits, counts up to 10
TAB, NEWLINE, RETURN, MINUS, ZERO = b"\t\n\r-0"
FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.signedinteger[Any]]
Where = Callable[[int], str]
"""The place of a chunk's line, for messages: "day_0:17"."""


@dataclass(frozen=True)
class Columns:
    """Some lines, taken apart."""

    numbers: npt.NDArray[np.float32]  # (n, 13), sign·log(1 + |x|), NaN where missing
    categories: Integers  # (n, 26), from 0 to below the buckets; 0 where missing
    labels: npt.NDArray[np.float32]  # (n,), 0 or 1


class Chunk:
    """Whole lines, their fields found; numbers are made of the lines that are asked for."""

    def __init__(self, data: Bytes, where: Where) -> None:
        """Of lines that all end with a newline. Raises DataError for a line of other than 40 fields."""
        self._data = np.concatenate(
            (data, np.zeros(LONGEST, np.uint8))
        )  # so that reading past the last field is harmless
        self._where = where
        ends = np.flatnonzero((data == TAB) | (data == NEWLINE)).astype(np.int32)  # of the fields
        last = data[ends] == NEWLINE
        if len(ends) % FIELDS or not last[FIELDS - 1 :: FIELDS].all() or last.sum() * FIELDS != len(ends):
            counts = np.diff(np.flatnonzero(last), prepend=-1)
            line = int(np.flatnonzero(counts != FIELDS)[0])
            raise DataError(f"{where(line)}: {_wrong_fields(int(counts[line]))}")
        self._ends = ends.reshape(-1, FIELDS)

    def __len__(self) -> int:
        return len(self._ends)

    def _fields(self, lines: Integers) -> tuple[Integers, Integers]:
        """Where the fields of these lines begin, and how long they are, (n, 40) each."""
        ends = self._ends[lines].astype(np.int64)
        before = np.where(lines > 0, self._ends[lines - 1, -1], -1)  # the newline of the line above
        starts = np.column_stack((before, ends[:, :-1])) + 1
        lengths = ends - starts
        lengths[:, -1] -= (lengths[:, -1] > 0) & (self._data[ends[:, -1] - 1] == RETURN)
        return starts, lengths

    def columns(self, lines: Integers, buckets: int) -> Columns:
        """The lines of these places in the chunk. Raises DataError for a field that is no number, or no label."""
        starts, lengths = self._fields(lines)
        if lengths.max(initial=0) > LONGEST:
            line, field = np.argwhere(lengths > LONGEST)[0]
            raise self._bad(lines[line], field, f"has {lengths[line, field]} characters; at most {LONGEST} are read")
        labels = self._data[starts[:, 0]] - ZERO
        wrong = (lengths[:, 0] != 1) | (labels > 1)
        if wrong.any():
            raise self._bad(lines[np.flatnonzero(wrong)[0]], 0, "is no label; it has to be 0 or 1")
        middle = slice(1, 1 + NUMBERS)
        numbers = self._numbers(lines, starts[:, middle], lengths[:, middle])
        categories = hashed(self._data, starts[:, 1 + NUMBERS :], lengths[:, 1 + NUMBERS :], buckets)
        return Columns(numbers, categories, labels.astype(np.float32))

    def _numbers(self, lines: Integers, starts: Integers, lengths: Integers) -> npt.NDArray[np.float32]:
        negative = (lengths > 0) & (self._data[starts] == MINUS)
        starts, digits = starts + negative, lengths - negative
        values = np.zeros(starts.shape)
        wrong = negative & (digits == 0)
        for place in range(int(digits.max(initial=0))):
            digit = self._data[starts + place] - ZERO  # below "0" wraps around to more than 9
            inside = place < digits
            wrong |= inside & (digit > 9)
            values = np.where(inside, 10 * values + digit, values)
        if wrong.any():
            line, field = np.argwhere(wrong)[0]
            raise self._bad(lines[line], 1 + field, "is no whole number")
        values = np.where(negative, -1, 1) * np.log1p(values)
        return np.where(lengths > 0, values, np.nan).astype(np.float32)

    def _bad(self, line: int, field: int, problem: str) -> DataError:
        starts, lengths = self._fields(np.array([line]))
        text = bytes(self._data[starts[0, field] :][: min(lengths[0, field], LONGEST)])
        return DataError(f"{self._where(int(line))}: {NAMES[field]} '{text.decode('utf-8', 'replace')}' {problem}")


def hashed(data: Bytes, starts: Integers, lengths: Integers, buckets: int) -> Integers:
    """Fields of `data` (n, columns) -> buckets: 0 for a missing one, else 1 + h mod (buckets − 1).

    h is FNV-1a of 64 bits over the column's number, from 0, and the field's bytes, upper half folded into the lower: the same
    on every machine, and another one for the same text in another column.
    """
    columns = np.arange(starts.shape[1], dtype=np.uint64)
    hashes = np.broadcast_to((FNV_BASIS ^ columns) * FNV_PRIME, starts.shape).copy()
    for place in range(int(lengths.max(initial=0))):
        following = (hashes ^ data[starts + place]) * FNV_PRIME
        hashes = np.where(place < lengths, following, hashes)
    folded = (hashes ^ (hashes >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    found = 1 + (folded % np.uint64(buckets - 1)).astype(np.int64)
    return np.where(lengths > 0, found, 0)


def _wrong_fields(count: int) -> str:
    if count == FIELDS - 1:
        return f"{count} fields, not {FIELDS}: is this the challenge's test file, which has no labels?"
    return f"{count} fields, not {FIELDS}: label, 13 numbers and 26 categories with tabs between them"
