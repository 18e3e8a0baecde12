"""The rows of a weight's matrix, some at a time, however it is stored: what comparing two files of any size needs.

R: block rows.  br: rows of a block.  K: kept blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix, block_rows, decode, to_matrix
from sapp_cli.checkpoint.block_sparse_file import BlockSparseEntry, check_padding, read_indices
from sapp_cli.checkpoint.dtypes import Bits
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.tensor_file import TensorFile, allocate
from sapp_cli.grid import BlockGrid, MatrixLayout

BAND_BYTES = 2 << 20


def bands(layout: MatrixLayout, itemsize: int) -> Iterator[tuple[int, int]]:
    """(first, one past the last) row of bands that cover the matrix, each about 2 MiB, at least a row."""
    rows, columns = layout.matrix
    step = max(1, BAND_BYTES // max(1, columns * itemsize))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class MatrixRows:
    """A weight of a checkpoint seen as its matrix (out, in), in its storage dtype.

    Holds one band of rows; a weight that is stored transposed (Conv1D) lies across its rows, and is held as a whole.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, layout: MatrixLayout) -> None:
        self._name = checkpoint.tied.get(name, name)
        self._layout = layout
        self._file: TensorFile = checkpoint.file(self._name)
        self._entry: BlockSparseEntry | None = checkpoint.block_sparse.get(self._name)
        self._whole: Bits | None = None
        if self._entry is not None:
            assert self._entry.layout == layout, f"{name}: is stored as {self._entry.layout}, not {layout}"
            self._crow, self._col = read_indices(self._file, self._entry)
        elif layout.kind == "transposed":
            self._whole = to_matrix(checkpoint.dense_array(self._name), layout)

    def read(self, start: int, stop: int) -> Bits:
        """Rows `start` to `stop`, (stop − start, in). Raises CheckpointError for damaged bytes."""
        if self._whole is not None:
            return self._whole[start:stop]
        if self._entry is not None:
            return self._decoded(self._entry, start, stop)
        layout = MatrixLayout(self._layout.kind, (stop - start, *self._layout.shape[1:]))
        info = self._file.info(self._name)
        row_bytes = layout.matrix[1] * info.kind.itemsize
        buffer = allocate((stop - start) * row_bytes, self._file.path, self._name)
        with self._file.reading(self._name) as read:
            read(start * row_bytes, buffer)
        return to_matrix(buffer.view(info.kind.storage).reshape(layout.shape), layout)

    def _decoded(self, entry: BlockSparseEntry, start: int, stop: int) -> Bits:
        """The block rows that hold the rows, decoded; then those rows of them."""
        (br, bc), values_name = entry.grid.block, entry.tensor_names[0]
        first, last = start // br, -(-stop // br)
        place = slice(int(self._crow[first]), int(self._crow[last]))  # of the kept blocks
        block_bytes = br * bc * entry.kind.itemsize
        buffer = allocate((place.stop - place.start) * block_bytes, self._file.path, self._name)
        with self._file.reading(values_name) as read:
            read(place.start * block_bytes, buffer)
        values = buffer.view(entry.kind.storage).reshape(-1, br, bc)
        crow, col = self._crow[first : last + 1] - self._crow[first], self._col[place]
        check_padding(self._file, entry, values, block_rows(crow) + np.int32(first), col)
        height = min(last * br, entry.grid.matrix[0]) - first * br
        band = BlockGrid((height, entry.grid.matrix[1]), entry.grid.block)
        return decode(BlockSparseMatrix(values, crow, col), band)[start - first * br : stop - first * br]


def same_bits(one: Bits, other: Bits) -> bool:
    """True if two arrays of one shape agree in every bit: NaN equals itself, −0 differs from +0."""
    kind = f"V{one.dtype.itemsize}" if one.dtype.itemsize not in (1, 2, 4, 8) else f"u{one.dtype.itemsize}"
    left, right = np.ascontiguousarray(one).view(kind), np.ascontiguousarray(other).view(kind)
    return left.shape == right.shape and bool((left == right).all())
