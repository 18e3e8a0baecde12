"""Squares, zeros and non-finite entries of one slab of a weight, added up block by block: the inner loop of `report`.

C: block columns.  bc: columns of a block.  k: block rows of a slab.  n: rows of each of its blocks that the slab holds.
width: entries in one row of the weight as it is stored.

The squares are added over the rows of each block first: whole rows onto whole rows, which is as fast as NumPy gets. What
is left, n times smaller, is put into the order of the matrix (convolutions) and added over the columns of each block in
float64. At most 64 squares are added in float32, so that a norm is within 2·10⁻⁶ of itself; where float32 overflows or
underflows, the slab is done again in float64.
"""

from __future__ import annotations

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

    def fold(self, operation: np.ufunc, rows: Bits, dtype: type[Any]) -> Bits:
        """Reduce stored rows (k, width) over the columns of each block, (k, C)."""
        if self.positions > 1:
            rows = rows.reshape(-1, self.channels, self.positions).swapaxes(1, 2).reshape(-1, self.width)
        if self.width % self.block == 0:
            folded: Bits = operation.reduce(rows.reshape(-1, self.count, self.block), axis=2, dtype=dtype)
        else:
            folded = operation.reduceat(rows, np.arange(0, self.width, self.block), axis=1, dtype=dtype)
        return folded


@dataclass(frozen=True, eq=False)
class BlockSums:
    """What a slab holds, block by block."""

    squares: Float64  # (k, C)
    kept: Mask  # (k, C), True where anything is nonzero
    nonzero: int
    finite: bool


def add_blocks(bits: Bits, kind: DType, columns: Columns) -> BlockSums:
    """The sums of a slab (k, n, width), n at most 64."""
    nonzero = count_nonzero(bits, kind)
    if nonzero in (0, bits.size):
        kept = np.full((len(bits), columns.count), nonzero > 0)
    else:
        patterns = np.bitwise_or.reduce(kind.patterns(bits), axis=1)  # (k, width)
        if kind.magnitude is not None:
            patterns &= patterns.dtype.type(kind.magnitude)
        kept = columns.fold(np.logical_or, patterns != 0, np.bool_)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = columns.fold(np.add, _add_rows(bits, kind), np.float64)
        finite = bool(np.isfinite(squares).all())
        if not finite or (kept & (squares < TINY)).any():
            values = to_float64(bits, kind)
            finite = bool(np.isfinite(values).all())
            squares = columns.fold(np.add, np.einsum("kni,kni->ki", values, values), np.float64)
    return BlockSums(squares, kept, nonzero, finite)


def count_nonzero(bits: Bits, kind: DType) -> int:
    """Entries that are not zero; −0 counts as zero."""
    patterns = kind.patterns(bits)
    if kind.name == "F8_E8M0" or (kind.magnitude is not None and _has_negative_zero(patterns)):
        return int(np.count_nonzero(kind.nonzero(bits)))
    return int(np.count_nonzero(patterns))


def to_float64(bits: Bits, kind: DType) -> Float64:
    """The values, of the same shape, exact but for integers beyond 2**53."""
    return bits.astype(np.float64) if kind.wide else kind.to_float32(bits).astype(np.float64)


def _add_rows(bits: Bits, kind: DType) -> Bits:
    """The squares of a slab (k, n, width), added over the rows, (k, width); float32 for dtypes of up to 32 bits."""
    if kind.name == "BF16" and bits.shape[2] % 2 == 0:
        # Two neighbours in one 32-bit word: the second is its upper half, which is a float32 as it stands.
        words = bits.view(np.uint32)  # (k, n, width / 2)
        values = (words << np.uint32(16)).view(np.float32)
        first = np.einsum("kni,kni->ki", values, values)
        np.bitwise_and(words, np.uint32(0xFFFF0000), out=values.view(np.uint32))
        second = np.einsum("kni,kni->ki", values, values)
        rows: Bits = np.stack((first, second), axis=2).reshape(len(bits), -1)
        return rows
    values = to_float64(bits, kind) if kind.wide else kind.to_float32(bits)
    added: Bits = np.einsum("kni,kni->ki", values, values)
    return added


def _has_negative_zero(patterns: npt.NDArray[np.unsignedinteger[Any]]) -> bool:
    """True if an entry is the sign bit alone, which is the least of all signed integers."""
    signed = patterns.view(f"i{patterns.dtype.itemsize}")
    return bool(signed.size) and int(signed.min()) == np.iinfo(signed.dtype).min
