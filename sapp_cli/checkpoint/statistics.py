"""Per-block norms and zeros of a weight of any size, read in slabs: memory for two slabs and for the answer.

R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.  k: block rows in a slab.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.block_sparse import Mask, block_rows
from sapp_cli.checkpoint.block_sparse_file import BlockSparseEntry, check_padding, read_indices
from sapp_cli.checkpoint.block_sums import BlockAdder, Columns, count_nonzero, to_float64
from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.dtypes import Bits, DType
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.tensor_file import TensorFile, TensorInfo, allocate, memory_errors
from sapp_cli.grid import BlockGrid, MatrixLayout

SLAB_BYTES = 1 << 20  # small enough for the processor's cache, large enough for Python's overhead
WIDEST_ROW = 2 << 20
THREADED_FROM = 8 << 20
MOST_THREADS = 4  # one reads while another adds; each has its slab in memory


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """What the blocks of a weight hold."""

    norms: npt.NDArray[np.floating[Any]]  # (R, C), Frobenius norms: float32; float64 for dtypes it cannot hold
    kept: Mask  # (R, C), True where anything is nonzero
    nonzero: int  # entries of the weight
    finite: bool  # False if an entry is inf or NaN


@dataclass(frozen=True)
class Band:
    """Rows `start` to `stop` of a weight: k whole block rows, or one that is read in pieces of `step` rows."""

    start: int
    stop: int
    step: int


def block_statistics(checkpoint: Checkpoint, name: str, layout: MatrixLayout, grid: BlockGrid) -> BlockStatistics:
    """Norms, kept blocks and zeros of a weight, by its logical name, on any grid over its matrix.

    A weight that is stored block-sparse is not made dense. Needs a few MiB beside the answer, whatever the weight's
    size (more where one stored block is larger). Raises CheckpointError for damaged bytes or indices and for complex
    numbers, ResourceError where the answer itself does not fit into memory.
    """
    name = checkpoint.tied.get(name, name)
    assert layout.shape == checkpoint.shape(name), f"{name}: a layout of {layout.shape} for {checkpoint.shape(name)}"
    assert layout.matrix == grid.matrix, f"{name}: a grid over {grid.matrix} for a matrix of {layout.matrix}"
    file, entry = checkpoint.file(name), checkpoint.block_sparse.get(name)
    if entry is not None:
        assert entry.layout == layout, f"{name}: is stored as {entry.layout}, not {layout}"
        return _of_entry(file, entry, grid)
    info = file.info(name)
    if info.kind.storage.kind == "c":
        raise damaged(file.path, f"complex numbers ({info.dtype}) are not supported", name)
    if layout.kind != "transposed":
        return _of_tensor(file, info, layout, grid)
    # The stored tensor is the matrix on its side, and so is its grid.
    sideways = BlockGrid((grid.matrix[1], grid.matrix[0]), (grid.block[1], grid.block[0]))
    found = _of_tensor(file, info, MatrixLayout("linear", info.shape), sideways)
    return BlockStatistics(found.norms.T, found.kept.T, found.nonzero, found.finite)


def _of_tensor(file: TensorFile, info: TensorInfo, layout: MatrixLayout, grid: BlockGrid) -> BlockStatistics:
    columns = Columns(layout.shape[1], math.prod(layout.shape[2:]), grid.block[1])
    norms, kept = _zeros(file, info.name, grid, _norm_dtype(info.kind)), _zeros(file, info.name, grid, np.bool_)
    if not info.size:
        return BlockStatistics(norms, kept, 0, True)
    if columns.width * info.kind.itemsize > WIDEST_ROW:
        nonzero, finite = _add_wide_rows(file, info, columns, grid, norms, kept)
        return BlockStatistics(norms, kept, nonzero, finite)
    bands = _bands(grid, columns.width * info.kind.itemsize)
    threads = min(MOST_THREADS, os.cpu_count() or 1) if info.nbytes >= THREADED_FROM else 1
    shares = [bands[first::threads] for first in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda share: _add_bands(file, info, columns, grid, share, norms, kept), shares))
    return BlockStatistics(norms, kept, sum(count for count, _ in parts), all(finite for _, finite in parts))


def _bands(grid: BlockGrid, row_bytes: int) -> list[Band]:
    """All rows of the grid, in bands of whole block rows whose pieces are about a slab each."""
    rows, br = grid.matrix[0], grid.block[0]
    fitting = max(1, SLAB_BYTES // row_bytes)
    if br > 2 * fitting:  # up to two slabs are not cut: adding a piece to its block row is not free
        return [Band(start, min(start + br, rows), fitting) for start in range(0, rows, br)]
    step = br * max(1, fitting // br)
    whole = rows - rows % br  # a ragged last block row is a band by itself
    bands = [Band(start, min(start + step, whole), step) for start in range(0, whole, step)]
    return bands if whole == rows else [*bands, Band(whole, rows, br)]


def _add_bands(
    file: TensorFile,
    info: TensorInfo,
    columns: Columns,
    grid: BlockGrid,
    bands: Sequence[Band],
    norms: npt.NDArray[np.floating[Any]],
    kept: Mask,
) -> tuple[int, bool]:
    """Fill the bands' rows of `norms` and `kept`; (nonzero entries, all finite). Each thread has bands of its own."""
    row_bytes, br = columns.width * info.kind.itemsize, grid.block[0]
    buffer = allocate(
        max((min(band.step, band.stop - band.start) for band in bands), default=0) * row_bytes, file.path, info.name
    )
    adder = BlockAdder(info.kind, columns, buffer.nbytes // info.kind.itemsize)
    nonzero, finite = 0, True
    with file.reading(info.name) as read:
        for band in bands:
            squares: Any = 0.0
            answer = slice(band.start // br, -(-band.stop // br))
            for row in range(band.start, band.stop, band.step):
                part = buffer[: min(band.step, band.stop - row) * row_bytes]
                read(row * row_bytes, part)
                bits = part.view(info.kind.storage).reshape(answer.stop - answer.start, -1, columns.width)
                sums = adder.add(bits)
                squares = squares + sums.squares
                kept[answer] |= sums.kept
                nonzero, finite = nonzero + sums.nonzero, finite and sums.finite
            _store_norms(norms, answer, squares)
    return nonzero, finite


@np.errstate(over="ignore", invalid="ignore")
def _add_wide_rows(
    file: TensorFile,
    info: TensorInfo,
    columns: Columns,
    grid: BlockGrid,
    norms: npt.NDArray[np.floating[Any]],
    kept: Mask,
) -> tuple[int, bool]:
    """As `_add_bands`, for a weight of which not even one row fits into a slab: entry by entry, and slower."""
    kind, (rows, _), (br, _) = info.kind, grid.matrix, grid.block
    buffer = allocate(SLAB_BYTES, file.path, info.name)
    step = SLAB_BYTES // kind.itemsize
    squares, filled = np.zeros(columns.count), np.zeros(columns.count, np.bool_)
    nonzero, finite = 0, True
    with file.reading(info.name) as read:
        for row in range(rows):
            for place in range(0, columns.width, step):
                part = buffer[: min(step, columns.width - place) * kind.itemsize]
                read((row * columns.width + place) * kind.itemsize, part)
                bits = part.view(kind.storage)
                values = to_float64(bits, kind)
                blocks = columns.of(np.arange(place, place + len(bits)))
                first = int(blocks.min())
                added = np.bincount(blocks - first, values * values)
                squares[first : first + len(added)] += added
                filled[blocks[kind.nonzero(bits)]] = True
                nonzero, finite = nonzero + count_nonzero(bits, kind), finite and bool(np.isfinite(values).all())
            if row % br == br - 1 or row == rows - 1:
                _store_norms(norms, row // br, squares)
                kept[row // br] = filled
                squares[:], filled[:] = 0, False
    return nonzero, finite


@np.errstate(over="ignore", invalid="ignore")
def _of_entry(file: TensorFile, entry: BlockSparseEntry, grid: BlockGrid) -> BlockStatistics:
    """The statistics of a weight stored block-sparse, from its kept blocks alone, on its own grid or another."""
    kind, (br, bc) = entry.kind, entry.grid.block
    norms, kept = _zeros(file, entry.name, grid, _norm_dtype(kind)), _zeros(file, entry.name, grid, np.bool_)
    crow, col = read_indices(file, entry)
    rows = block_rows(crow)
    same = grid.block == entry.grid.block
    squares = norms if same else _zeros(file, entry.name, grid, np.float64)
    nonzero, finite = 0, True
    for first, bits in file.slabs(entry.tensor_names[0], SLAB_BYTES):
        here = slice(first, first + len(bits))
        check_padding(file, entry, bits, rows[here], col[here])
        values = to_float64(bits, kind)  # (k, br, bc)
        nonzero, finite = nonzero + count_nonzero(bits, kind), finite and bool(np.isfinite(values).all())
        if same:
            _store_norms(norms, (rows[here], col[here]), np.einsum("kij,kij->k", values, values))
            kept[rows[here], col[here]] = kind.nonzero(bits).any(axis=(1, 2))
            continue
        # Entry by entry; those in the padding are zeros, so it does not matter which block they are added to.
        down = np.minimum(rows[here, None].astype(np.int64) * br + np.arange(br), grid.matrix[0] - 1) // grid.block[0]
        across = np.minimum(col[here, None].astype(np.int64) * bc + np.arange(bc), grid.matrix[1] - 1) // grid.block[1]
        place = np.broadcast_arrays(down[:, :, None], across[:, None, :])
        np.add.at(squares, tuple(place), values * values)
        held = kind.nonzero(bits)
        kept[place[0][held], place[1][held]] = True
    if not same:
        _store_norms(norms, ..., squares)
    return BlockStatistics(norms, kept, nonzero, finite)


def _norm_dtype(kind: DType) -> type[np.floating[Any]]:
    return np.float64 if kind.wide else np.float32


def _zeros(file: TensorFile, name: str, grid: BlockGrid, dtype: type[Any]) -> npt.NDArray[Any]:
    """One zero for each block, (R, C); ResourceError if there is no memory for them."""
    with memory_errors(file.path, name):
        return np.zeros(grid.size, dtype)


def _store_norms(norms: npt.NDArray[np.floating[Any]], place: Any, squares: Bits) -> None:
    with np.errstate(over="ignore"):  # the norm of entries near the end of float32 is inf there
        norms[place] = np.sqrt(squares)
