"""`source: criteo`: click logs in Criteo's format, streamed from their text in the order of the days.

The rows of an epoch are shuffled within windows of `shuffle_rows` lines, which follow one another as the files do; so memory
holds a window or two, and any batch of any epoch is found again from the seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from sapp_cli.errors import DataError
from sapp_cli.inputs.criteo_files import Lines, count_lines
from sapp_cli.inputs.criteo_text import Chunk, Columns
from sapp_cli.inputs.files import find_files, place
from sapp_cli.inputs.rows import TARGETS, Batch, DataSets, Row, stack_rows
from sapp_cli.recipe.data_section import DataSection

ENOUGH = 1 << 16  # lines of a window where nothing is shuffled


class CriteoRows(Dataset[Row]):
    """Lines `first` … `last − 1` as rows: numbers (13,) fp32, NaN where missing; categories (26,) int64; targets ()."""

    def __init__(self, lines: Lines, first: int, last: int, buckets: int, shuffle_rows: int) -> None:
        self._lines = lines
        self._first, self._last = first, last
        self._buckets = buckets
        self._window = shuffle_rows
        self._known: dict[tuple[int, int], Chunk] = {}  # the windows read last, by first line and length

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = self.take([index], None)
        return {key: value[0] for key, value in batch.items()}

    def take(self, places: Sequence[int], order: tuple[int, int] | None) -> Batch:
        """The rows at these places of an epoch, `order` (seed, epoch), or of the files, None; ascending from call to call
        they are read in one pass.
        """
        window = self._window if order else min(self._window, ENOUGH)
        where = np.asarray(places, np.int64)
        parts = []
        for number in np.unique(where // window).tolist():
            chunk = self._chunk(number * window, min(window, len(self) - number * window))
            inside = where[where // window == number] - number * window
            if order is not None:
                inside = _permutation(len(chunk), *order, number)[inside]
            parts.append(chunk.columns(inside, self._buckets))
        return _batch(parts)

    def _chunk(self, first: int, count: int) -> Chunk:
        key = first, count
        if key not in self._known:
            beginning = self._first + first
            data = self._lines.read(beginning, count)
            while len(self._known) > 1:  # a batch may lie in two windows
                del self._known[next(iter(self._known))]
            self._known[key] = Chunk(data, lambda line: self._lines.place(beginning + line))
        return self._known[key]

    def __getstate__(self) -> dict[str, object]:
        """For worker processes: without the windows."""
        return {**self.__dict__, "_known": {}}


def load_criteo_data(data: DataSection) -> DataSets:
    """Training rows from `data.files.train`, validation rows from `data.files.validation` or the last of the training lines.

    The last ones, because a log is to be judged by the days after it. Raises DataError for files that are missing or empty;
    what is wrong in a line shows where it is read.
    """
    train_files = find_files(data.files.train, "data.files.train")
    settings = data.criteo
    lines = Lines([count_lines(file) for file in train_files])
    if data.files.validation is None:
        first = len(lines) - int(len(lines) * data.validation_share)
        validation_lines, validation = lines, (first, len(lines))
        train = (0, first)
    else:
        files = find_files(data.files.validation, "data.files.validation")
        validation_lines = Lines([count_lines(file) for file in files])
        validation, train = (0, len(validation_lines)), (0, len(lines))
    for part, (first, last) in (("training", train), ("validation", validation)):
        if first >= last:
            raise DataError(
                f"{place(train_files)}: {len(lines)} lines leave none for {part}; see data.validation_share"
            )
    counts = f"{train[1] - train[0]:,} rows of {place(train_files)}"
    return DataSets(
        CriteoRows(lines, *train, settings.buckets, settings.shuffle_rows),
        # Of its own: the two are read in turns, and each stands somewhere in a file.
        CriteoRows(Lines(validation_lines.files), *validation, settings.buckets, settings.shuffle_rows),
        stack_rows,
        f"training: {counts}; validation: {validation[1] - validation[0]:,} rows",
    )


def _permutation(rows: int, seed: int, epoch: int, window: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    mixed = hashlib.sha256(f"{seed} {epoch} {window}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
    return torch.randperm(rows, generator=generator).numpy()


def _batch(parts: list[Columns]) -> Batch:
    return {
        "numbers": torch.from_numpy(np.concatenate([part.numbers for part in parts])),
        "categories": torch.from_numpy(np.concatenate([part.categories for part in parts])),
        TARGETS: torch.from_numpy(np.concatenate([part.labels for part in parts])),
    }
