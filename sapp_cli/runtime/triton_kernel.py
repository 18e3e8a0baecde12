"""The CUDA kernel: one Triton program multiplies a tile of rows of x by (a part of) one block row.

M: rows of x.  R: block rows.  K: kept blocks.  br, bc: rows and columns of a block.  n: kept blocks of a block row.

With values stored as (K, bc, br), the kept blocks of a block row lie in memory as one plain matrix (n·bc, br). So a block row
is an ordinary product of tiles, whatever the size of the blocks; the only thing sparse about it is which column of x meets
which row of that matrix. Several narrow blocks fill one tile, a wide block is several tiles, and edges are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "block_rows"])  # type: ignore[untyped-decorator]
def block_sparse_product(  # type: ignore[no-untyped-def]
    x,  # (M, in), rows `x_stride` apart
    values,  # (K, bc, br), contiguous
    crow,  # int32 (R + 1,)
    col,  # int32 (K,)
    order,  # int32 (R,): block rows, those with most blocks first
    bias,  # fp32 (out,)
    y,  # (M, out), contiguous
    rows,
    block_rows,
    x_stride,
    in_features,
    out_features,
    BLOCK_ROWS: tl.constexpr,  # br
    BLOCK_COLUMNS: tl.constexpr,  # bc
    TILE_ROWS: tl.constexpr,
    TILE_OUTPUTS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    CONTIGUOUS: tl.constexpr,  # the power of two in gcd(bc, TILE_COLUMNS)
    RAGGED: tl.constexpr,  # bc does not divide `in`
    PRECISION: tl.constexpr,  # of float32 operands: "ieee" or "tf32"
    WIDEN: tl.constexpr,  # multiply as float32, where there is no arithmetic for the dtype
):
    """A tile of y = x Wᵀ + bias.

    Programs go through all block rows for the same rows of x before they take the next ones, so x stays in the L2 cache.
    """
    pieces: tl.constexpr = (BLOCK_ROWS + TILE_OUTPUTS - 1) // TILE_OUTPUTS  # of a block that is taller than a tile
    program = tl.program_id(0)
    tasks = block_rows * pieces
    task = program % tasks
    block_row = tl.load(order + task // pieces)
    first = tl.load(crow + block_row)
    length = (tl.load(crow + block_row + 1) - first) * BLOCK_COLUMNS  # n·bc

    row = (program // tasks) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    output = (task % pieces) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)  # within the block
    inner = tl.arange(0, TILE_COLUMNS)
    # 64 bits: a product of two of these sizes may not fit in 32.
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    weights = values + first.to(tl.int64) * (BLOCK_COLUMNS * BLOCK_ROWS) + inner[:, None] * BLOCK_ROWS + output[None, :]

    sums = tl.full((TILE_ROWS, TILE_OUTPUTS), 0.0, tl.float32)
    for begin in range(0, length, TILE_COLUMNS):
        place = begin + inner
        if BLOCK_COLUMNS % TILE_COLUMNS == 0:
            column = tl.load(col + first + begin // BLOCK_COLUMNS) * BLOCK_COLUMNS + begin % BLOCK_COLUMNS + inner
        else:
            block = tl.load(col + first + place // BLOCK_COLUMNS, mask=place < length, other=0)
            column = block * BLOCK_COLUMNS + place % BLOCK_COLUMNS
        column = tl.max_contiguous(tl.multiple_of(column, CONTIGUOUS), CONTIGUOUS)  # or x would be read entry by entry
        # Both factors are masked: what lies behind the last block, or beyond the edge of x, must not meet an infinity.
        inside = place < length
        if RAGGED:
            inside = inside & (column < in_features)
        left = tl.load(x_rows + column[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        right = tl.load(weights, mask=inside[:, None] & (output < BLOCK_ROWS)[None, :], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
        weights += TILE_COLUMNS * BLOCK_ROWS

    place_in_y = block_row * BLOCK_ROWS + output
    exists = (output < BLOCK_ROWS) & (place_in_y < out_features)
    sums += tl.load(bias + place_in_y, mask=exists, other=0.0)[None, :]
    y_rows = y + row.to(tl.int64)[:, None] * out_features
    tl.store(y_rows + place_in_y[None, :], sums.to(y.dtype.element_ty), mask=(row < rows)[:, None] & exists[None, :])
