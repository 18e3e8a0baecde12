"""A matrix as its kept blocks only, and back, bit for bit: the mathematics of docs/format.md, without files.

out, in: a weight as a matrix.  R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.
Arrays are in storage dtypes (dtypes.py), so what is said of bfloat16 holds for its bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.dtypes import Bits, DType
from sapp_cli.grid import BlockGrid, MatrixLayout

Indices = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
MAX_INDEX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class BlockSparseMatrix:
    """What `torch.sparse_bsr_tensor` and `scipy.sparse.bsr_array` take; ragged edge blocks are padded with zeros."""

    values: Bits  # (K, br, bc)
    crow: Indices  # (R + 1,): the blocks of block row r are crow[r] to crow[r + 1]
    col: Indices  # (K,): block columns, ascending within a block row


def to_matrix(array: Bits, layout: MatrixLayout) -> Bits:
    """The weight as its matrix (out, in); a view where the layout allows it."""
    matrix: Bits = array.transpose(layout.axes).reshape(layout.matrix)
    return matrix


def from_matrix(matrix: Bits, layout: MatrixLayout) -> Bits:
    """The inverse of `to_matrix`: (out, in) -> the weight's own shape, a view."""
    array: Bits = matrix.reshape(layout.permuted_shape).transpose(layout.inverse_axes)
    return array


def kept_blocks(matrix: Bits, grid: BlockGrid, dtype: DType) -> Mask:
    """True for the blocks with anything nonzero in them, (R, C). −0 counts as zero, NaN does not."""
    return any_in_blocks(dtype.nonzero(matrix), grid)


def any_in_blocks(flags: Mask, grid: BlockGrid) -> Mask:
    """True for the blocks in which any of `flags` (out, in) is, (R, C)."""
    assert flags.shape == grid.matrix, f"a mask of {flags.shape} on a grid over {grid.matrix}"
    if not flags.size:
        return np.zeros(grid.size, np.bool_)
    rows = np.logical_or.reduceat(flags, np.arange(0, grid.matrix[0], grid.block[0]), axis=0)  # (R, in)
    return np.logical_or.reduceat(rows, np.arange(0, grid.matrix[1], grid.block[1]), axis=1)  # (R, C)


def indices(kept: Mask) -> tuple[Indices, Indices]:
    """(crow (R + 1,), col (K,)) of the kept blocks (R, C), in row-major order."""
    assert kept.size <= MAX_INDEX, f"a grid of {kept.size} blocks; the format's indices are int32"
    crow = np.zeros(kept.shape[0] + 1, np.int32)
    np.cumsum(kept.sum(axis=1), out=crow[1:])
    return crow, np.nonzero(kept)[1].astype(np.int32)


def block_rows(crow: Indices) -> Indices:
    """The block row of each kept block, (K,)."""
    return np.repeat(np.arange(len(crow) - 1, dtype=np.int32), np.diff(crow))


def gather(matrix: Bits, grid: BlockGrid, kept: Mask) -> Bits:
    """The kept blocks of the matrix (out, in), in row-major order, (K, br, bc); ragged ones padded with zeros."""
    return _as_blocks(_padded(matrix, grid), grid)[np.nonzero(kept)]


def encode(matrix: Bits, grid: BlockGrid, dtype: DType) -> BlockSparseMatrix:
    """The matrix (out, in) as the blocks with anything nonzero in them."""
    kept = kept_blocks(matrix, grid, dtype)
    return BlockSparseMatrix(gather(matrix, grid, kept), *indices(kept))


def decode(sparse: BlockSparseMatrix, grid: BlockGrid) -> Bits:
    """The matrix (out, in) with +0 in place of the blocks that were not kept. The indices must have been checked."""
    padded = np.zeros(grid.padded, sparse.values.dtype)
    _as_blocks(padded, grid)[block_rows(sparse.crow), sparse.col] = sparse.values
    return np.ascontiguousarray(padded[: grid.matrix[0], : grid.matrix[1]])


def index_problem(crow: Indices, col: Indices, grid: BlockGrid) -> str | None:
    """What is wrong with the indices of a block-sparse matrix on this grid; None if nothing is.

    Native kernels use indices unchecked: a column out of range reads and writes outside their arrays.
    """
    (rows, columns), kept = grid.size, len(col)
    if crow.shape != (rows + 1,):
        return f"bsr_crow_indices has {len(crow)} entries; {rows} block rows need {rows + 1}"
    if crow[0] != 0:
        return f"bsr_crow_indices begins with {crow[0]}, not 0"
    if crow[-1] != kept:
        return f"bsr_crow_indices ends with {crow[-1]}; there are {kept} blocks"
    falling = np.flatnonzero(crow[1:] < crow[:-1])  # compared, not subtracted: a difference of two int32 can overflow
    if falling.size:
        return f"bsr_crow_indices falls at block row {falling[0]}"
    outside = np.flatnonzero((col < 0) | (col >= columns))
    if outside.size:
        return f"bsr_col_indices[{outside[0]}] is {col[outside[0]]}; there are {columns} block columns"
    ascends = col[1:] > col[:-1]  # (K - 1,)
    starts = crow[1:-1]
    ascends[starts[(starts > 0) & (starts < kept)] - 1] = True  # a new block row may begin anywhere
    if not ascends.all():
        return f"bsr_col_indices[{np.flatnonzero(~ascends)[0] + 1}] does not ascend within its block row"
    return None


def padding_is_zero(values: Bits, rows: Indices, columns: Indices, grid: BlockGrid) -> bool:
    """True if `values` (K, br, bc) of the blocks at (rows, columns) are 0 in every bit outside the matrix."""
    (last_row, last_column), (br, bc) = (grid.size[0] - 1, grid.size[1] - 1), grid.block
    height, width = grid.matrix[0] - last_row * br, grid.matrix[1] - last_column * bc
    bits = values.view(f"u{values.dtype.itemsize}") if values.dtype.itemsize <= 8 else values
    below = height < br and bits[rows == last_row, height:].any()
    right = width < bc and bits[columns == last_column, :, width:].any()
    return not (below or right)


def _padded(matrix: Bits, grid: BlockGrid) -> Bits:
    if not grid.ragged:
        return matrix
    padded = np.zeros(grid.padded, matrix.dtype)
    padded[: grid.matrix[0], : grid.matrix[1]] = matrix
    return padded


def _as_blocks(padded: Bits, grid: BlockGrid) -> Bits:
    """(R, C, br, bc): a view, through which blocks can be read and written."""
    (rows, columns), (br, bc) = grid.size, grid.block
    blocks: Bits = padded.reshape(rows, br, columns, bc).transpose(0, 2, 1, 3)
    return blocks
