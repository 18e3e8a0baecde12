"""Squares, zeros and non-finite entries of one slab of a weight, added up block by block: the inner loop of `report`.

C: block columns.  bc: columns of a block.  k: block rows of a slab.  n: rows of each of its blocks that the slab holds.
width: entries in one row of the weight as it is stored.

The squares are added over the rows of each block first: whole rows onto whole rows, which is as fast as NumPy gets.
What is left, n times smaller, is put into the order of the matrix (convolutions) and added over the columns of each block
in float64. At most 64 squares are added in float32, so that a norm is within 2·10⁻⁶ of itself; where float32 overflows or
underflows, the slab is done again in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.block_sparse import Mask
from sapp_cli.checkpoint.dtypes import Bits, DType

Float64: TypeAlias = npt.NDArray[np.float64]
ROWS_AT_ONCE = 64
TINY = 1e-30  # a smaller sum of squares may have lost some to underflow


@dataclass(frozen=True)
class Columns:
    """The columns of a matrix whose rows are stored as (channels, positions); 1 position but for convolutions."""

    channels: int
    positions: int
    block: int  # bc

    @property
    def width(self) -> int:
        return self.channels * self.positions

    @property
    def count(self) -> int:
        """C."""
        return -(-self.width // self.block)

    def of(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The block column of each entry at `place` in a stored row."""
        return (place % self.positions * self.channels + place // self.positions) // self.block

    def add(self, rows: Bits) -> Float64:
        """Stored rows (k, width) added over the columns of each block, (k, C), in float64.

        Rows of half the width hold the sums of neighbours that lie in one block.
        """
        rows = self._in_matrix_order(rows).astype(np.float64)
        block = self.block if rows.shape[1] == self.width else self.block // 2
        if rows.shape[1] % block:
            added: Float64 = np.add.reduceat(rows, np.arange(0, rows.shape[1], block), axis=1)
        else:
            added = rows.reshape(-1, self.count, block) @ np.ones(block)
        return added

    def any(self, rows: Mask) -> Mask:
        """True where any of the stored rows (k, width) is, over the columns of each block, (k, C)."""
        found: Mask = np.logical_or.reduceat(self._in_matrix_order(rows), np.arange(0, self.width, self.block), axis=1)
        return found

    def _in_matrix_order(self, rows: Bits) -> Bits:
        if self.positions > 1:
            rows = rows.reshape(-1, self.channels, self.positions).swapaxes(1, 2).reshape(-1, self.width)
        return rows


@dataclass(frozen=True, eq=False)
class BlockSums:
    """What a slab holds, block by block."""

    squares: Float64  # (k, C)
    kept: Mask  # (k, C), True where anything is nonzero
    nonzero: int
    finite: bool


class BlockAdder:
    """Adds up slabs of one weight. Owns its scratch memory, so there is one for each thread."""

    def __init__(self, kind: DType, columns: Columns, entries: int) -> None:
        """For slabs of at most so many entries."""
        self.kind = kind
        self.columns = columns
        self.scratch = np.empty(entries if kind.name == "BF16" else 0, np.uint16)

    def add(self, bits: Bits) -> BlockSums:
        """The sums of a slab (k, n, width)."""
        kind, columns = self.kind, self.columns
        nonzero = count_nonzero(bits, kind)
        if nonzero in (0, bits.size):
            kept = np.full((len(bits), columns.count), nonzero > 0)
        else:
            patterns = np.bitwise_or.reduce(kind.patterns(bits), axis=1)  # (k, width)
            if kind.magnitude is not None:
                patterns &= patterns.dtype.type(kind.magnitude)
            kept = columns.any(patterns != 0)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            squares = columns.add(self._add_all_rows(bits))
            finite = math.isfinite(squares.sum())
            if not finite or (squares.min(where=kept, initial=TINY) < TINY):
                values = to_float64(bits, kind)
                finite = bool(np.isfinite(values).all())
                squares = columns.add(np.einsum("kni,kni->ki", values, values))
        return BlockSums(squares, kept, nonzero, finite)

    def _add_all_rows(self, bits: Bits) -> Bits:
        """The squares of a slab (k, n, width), added over the rows, as `Columns.add` takes them."""
        added = self._add_rows(bits[:, :ROWS_AT_ONCE])
        for row in range(ROWS_AT_ONCE, bits.shape[1], ROWS_AT_ONCE):
            added = added + self._add_rows(bits[:, row : row + ROWS_AT_ONCE]).astype(np.float64)
        return added

    def _add_rows(self, bits: Bits) -> Bits:
        """As `_add_all_rows` for a few rows, in float32 unless the dtype is wide."""
        if self.kind.name == "BF16" and bits.shape[2] % 2 == 0:
            # Two neighbours in one 32-bit word: the second is its upper half, which is a float32 as it stands.
            words = bits.view(np.uint32)  # (k, n, width / 2)
            scratch = self.scratch[: bits.size].view(np.uint32).reshape(words.shape)
            values = scratch.view(np.float32)
            np.left_shift(words, np.uint32(16), out=scratch)
            first = np.einsum("kni,kni->ki", values, values)
            np.bitwise_and(words, np.uint32(0xFFFF0000), out=scratch)
            second = np.einsum("kni,kni->ki", values, values)
            if self.columns.block % 2 == 0 and self.columns.positions == 1:
                neighbours: Bits = first + second
                return neighbours
            rows: Bits = np.stack((first, second), axis=2).reshape(len(bits), -1)
            return rows
        floats: Bits = to_float64(bits, self.kind) if self.kind.wide else self.kind.to_float32(bits)
        added: Bits = np.einsum("kni,kni->ki", floats, floats)
        return added


def count_nonzero(bits: Bits, kind: DType) -> int:
    """Entries that are not zero; −0 counts as zero."""
    if kind.storage.kind == "f" and kind.itemsize >= 4:  # NumPy compares these as fast as integers
        return int(np.count_nonzero(np.not_equal(bits, 0)))
    patterns = kind.patterns(bits)
    if kind.name == "F8_E8M0" or (kind.magnitude is not None and _has_negative_zero(patterns)):
        return int(np.count_nonzero(kind.nonzero(bits)))
    return int(np.count_nonzero(patterns))


def to_float64(bits: Bits, kind: DType) -> Float64:
    """The values, of the same shape, exact but for integers beyond 2**53."""
    return bits.astype(np.float64) if kind.wide else kind.to_float32(bits).astype(np.float64)


def _has_negative_zero(patterns: npt.NDArray[np.unsignedinteger[Any]]) -> bool:
    """True if an entry is the sign bit alone, which is the least of all signed integers."""
    signed = patterns.view(f"i{patterns.dtype.itemsize}")
    return bool(signed.size) and int(signed.min()) == -(2 ** (8 * signed.dtype.itemsize - 1))
