"""Block-sparse weights inside safetensors files, versions 1 and 2 (docs/format.md): their metadata and their tensors.

R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from sapp_cli.checkpoint.block_sparse import (
    MAX_INDEX,
    BlockSparseMatrix,
    Indices,
    Mask,
    block_rows,
    decode,
    from_matrix,
    index_problem,
    indices,
    padding_is_zero,
)
from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES, Bits, DType
from sapp_cli.checkpoint.json_text import parse_object
from sapp_cli.checkpoint.safetensors import MAX_AXES, MAX_BYTES
from sapp_cli.checkpoint.tensor_file import TensorFile, TensorInfo, memory_errors
from sapp_cli.checkpoint.write import TensorOut
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout

VERSION = "1"
WITH_MARKERS = "2"
"""The version of files in which weights may have a marker, and `sapp_bsr` may name weights of other files."""
WITHOUT_BLOCKS = frozenset({"C64", "F8_E8M0"})
"""Dtypes of no weights: complex numbers, and scales, which have no zero to leave out."""
SUFFIXES = (".bsr_values", ".bsr_crow_indices", ".bsr_col_indices")


@dataclass(frozen=True)
class BlockSparseEntry:
    """A weight that is stored as its kept blocks; everything about it but its bytes."""

    name: str
    dtype: str
    layout: MatrixLayout
    grid: BlockGrid
    kept: int  # K
    marker: int | None = None  # n of its marker (rows, 0, n)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own."""
        return self.layout.shape

    @property
    def kind(self) -> DType:
        return DTYPES[self.dtype]

    @property
    def tensor_names(self) -> tuple[str, str, str]:
        """Names of the values, crow and col tensors in the file."""
        values, crow, col = (self.name + suffix for suffix in SUFFIXES)
        return values, crow, col

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        (rows, _), (br, bc) = self.grid.size, self.grid.block
        return self.kept * br * bc * self.kind.itemsize + 4 * (rows + 1 + self.kept)


def block_sparse_metadata(
    weights: Mapping[str, tuple[MatrixLayout, BlockGrid]], tied: Mapping[str, str], marked: bool = False
) -> dict[str, str]:
    """The header's metadata for a shard that holds these block-sparse weights, and the stored names of these ties.

    `marked`: the weights have markers.
    """
    entries = {
        name: {
            "shape": list(layout.shape),
            "matrix": list(layout.matrix),
            "block": list(grid.block),
            "layout": layout.kind,
        }
        for name, (layout, grid) in weights.items()
    }
    metadata = {"format": "pt", "sapp_bsr_version": WITH_MARKERS if marked else VERSION, "sapp_bsr": _json(entries)}
    return {**metadata, "sapp_tied": _json(dict(tied))} if tied else metadata


def block_sparse_out(
    name: str, dtype: str, grid: BlockGrid, kept: Mask, values: Callable[[], Bits]
) -> tuple[TensorOut, TensorOut, TensorOut]:
    """The three tensors of a weight with the kept blocks (R, C); `values` gives them when asked, (K, br, bc)."""
    assert dtype not in WITHOUT_BLOCKS, f"{name}: weights of dtype {dtype} cannot be block-sparse"
    crow, col = indices(kept)
    names = (name + suffix for suffix in SUFFIXES)
    return (
        TensorOut(next(names), dtype, (len(col), *grid.block), values),
        TensorOut(next(names), "I32", crow.shape, lambda: crow),
        TensorOut(next(names), "I32", col.shape, lambda: col),
    )


def marker_out(name: str, dtype: str, rows: int, number: int) -> TensorOut:
    """A tensor without entries under the weight's own name, (rows, 0, number): the weight's first axis, and a number from 1
    that no other weight has.

    A library that does not know the format would miss the weight, warn and go on with random numbers; over a tensor of another
    shape it stops.
    """
    shape = rows, 0, number
    return TensorOut(name, dtype, shape, lambda: np.empty(shape, DTYPES[dtype].storage))


def parse_block_sparse(file: TensorFile) -> dict[str, BlockSparseEntry]:
    """NAME -> entry of every block-sparse weight in the file; empty for a file without any.

    Checks all that the header says; the indices themselves are checked when they are read. Raises CheckpointError.
    """
    version = file.metadata.get("sapp_bsr_version")
    if version is None:
        if "sapp_bsr" in file.metadata:
            raise damaged(file.path, "sapp_bsr in the metadata without sapp_bsr_version")
        return {}
    if version not in (VERSION, WITH_MARKERS):
        problem = (
            f"block-sparse format of version {quoted(version)}; this sapp reads versions {VERSION} and {WITH_MARKERS}: "
            "upgrade it"
        )
        raise damaged(file.path, problem)
    entries = {
        name: _checked_entry(file, name, about)
        for name, about in named_in_metadata(file).items()
        if version == VERSION or _has_part_of(file, name)
    }
    triples = {tensor for entry in entries.values() for tensor in entry.tensor_names}
    for name in file.tensors:
        if name.endswith(SUFFIXES) and name not in triples:
            raise damaged(
                file.path, "a part of a block-sparse weight that sapp_bsr in the metadata does not name", name
            )
    return entries


def named_in_metadata(file: TensorFile) -> dict[str, Any]:
    """NAME -> what `sapp_bsr` in the file's metadata says of it, unchecked. Raises CheckpointError for what is not JSON."""
    return parse_object(file.metadata.get("sapp_bsr", "{}"), file.path, "sapp_bsr in the metadata")


def parse_tied(file: TensorFile) -> dict[str, str]:
    """Alias -> stored name, as the file's metadata has it. Raises CheckpointError."""
    tied = parse_object(file.metadata.get("sapp_tied", "{}"), file.path, "sapp_tied in the metadata")
    for alias, stored in tied.items():
        if not isinstance(stored, str):
            raise damaged(file.path, "sapp_tied in the metadata does not give a name for it", alias)
    return tied


def read_indices(file: TensorFile, entry: BlockSparseEntry) -> tuple[Indices, Indices]:
    """(crow (R + 1,), col (K,)), every index checked. Raises CheckpointError."""
    _, crow_name, col_name = entry.tensor_names
    crow, col = file.array(crow_name), file.array(col_name)
    problem = index_problem(crow, col, entry.grid)
    if problem is not None:
        raise damaged(file.path, problem, entry.name)
    return crow, col


def read_matrix(file: TensorFile, entry: BlockSparseEntry) -> BlockSparseMatrix:
    """The weight's matrix as its kept blocks, indices and padding checked. Raises CheckpointError."""
    crow, col = read_indices(file, entry)
    values = file.array(entry.tensor_names[0])
    check_padding(file, entry, values, block_rows(crow), col)
    return BlockSparseMatrix(values, crow, col)


def read_weight(file: TensorFile, entry: BlockSparseEntry) -> Bits:
    """The weight in its own shape with +0 where blocks were not kept; a view that need not be contiguous.

    Raises CheckpointError, and ResourceError where the dense weight does not fit into memory.
    """
    sparse = read_matrix(file, entry)
    with memory_errors(file.path, entry.name):
        return from_matrix(decode(sparse, entry.grid), entry.layout)


def check_padding(file: TensorFile, entry: BlockSparseEntry, values: Bits, rows: Indices, columns: Indices) -> None:
    """Raise CheckpointError if the blocks `values` at (rows, columns) have something outside the matrix."""
    if not padding_is_zero(values, rows, columns, entry.grid):
        raise damaged(file.path, "bsr_values is not zero in the padding of its edge blocks", entry.name)


def _checked_entry(file: TensorFile, name: str, about: Any) -> BlockSparseEntry:
    if not isinstance(about, dict) or set(about) != {"shape", "matrix", "block", "layout"}:
        raise damaged(file.path, "its entry in sapp_bsr is not {shape, matrix, block, layout}", name)
    marker = file.tensors.get(name)
    if marker is not None and (file.metadata["sapp_bsr_version"] == VERSION or not _is_marker(marker, about["shape"])):
        raise damaged(file.path, "is stored both dense and block-sparse", name)
    shape, matrix, block, kind = about["shape"], about["matrix"], about["block"], about["layout"]
    if kind not in get_args(LayoutKind):
        raise damaged(file.path, f"unknown layout {quoted(kind)} in sapp_bsr", name)
    if not _naturals(shape) or not 2 <= len(shape) <= (MAX_AXES if kind == "conv" else 2):
        raise damaged(file.path, f"the shape in sapp_bsr is not one of a {kind} weight", name)
    if not _naturals(block) or len(block) != 2 or min(block) < 1:
        raise damaged(file.path, "the block in sapp_bsr is not two positive numbers", name)
    layout = MatrixLayout(kind, tuple(shape))
    if matrix != list(layout.matrix):
        raise damaged(
            file.path, f"the matrix in sapp_bsr is not {list(layout.matrix)}, as shape and layout have it", name
        )
    grid = BlockGrid(layout.matrix, (block[0], block[1]))
    entry = _checked_triple(file, name, layout, grid)
    return entry if marker is None else replace(entry, marker=marker.shape[2])


def _has_part_of(file: TensorFile, name: str) -> bool:
    return any(part in file.tensors for part in (name, *(name + suffix for suffix in SUFFIXES)))


def _is_marker(info: TensorInfo, shape: Any) -> bool:
    """True for (rows, 0, n): the weight's first axis as sapp_bsr has it, n from 1."""
    rows = shape[0] if isinstance(shape, list) and shape else None
    return len(info.shape) == 3 and info.shape[:2] == (rows, 0) and info.shape[2] > 0


def _checked_triple(file: TensorFile, name: str, layout: MatrixLayout, grid: BlockGrid) -> BlockSparseEntry:
    """The entry, after its three tensors were held against shape, grid and each other."""
    missing = [name + suffix for suffix in SUFFIXES if name + suffix not in file.tensors]
    if missing:
        raise damaged(file.path, f"{quoted(missing[0])} is missing", name)
    values, crow, col = (file.tensors[name + suffix] for suffix in SUFFIXES)
    rows, columns = grid.padded
    # A few bytes of indices can announce a matrix of any size: bounded here, so that no product overflows later on.
    if grid.count > MAX_INDEX or rows * columns * max(1, values.kind.itemsize) > MAX_BYTES:
        raise damaged(
            file.path, f"a grid of {grid.size[0]:,} × {grid.size[1]:,} blocks is larger than the format allows", name
        )
    if values.dtype in WITHOUT_BLOCKS:
        raise damaged(file.path, f"weights of dtype {values.dtype} cannot be block-sparse", name)
    if crow.dtype != "I32" or col.dtype != "I32":
        raise damaged(file.path, f"its indices are {crow.dtype} and {col.dtype}, not I32", name)
    if crow.shape != (grid.size[0] + 1,):
        raise damaged(
            file.path, f"bsr_crow_indices is {crow.shape}; {grid.size[0]} block rows need ({grid.size[0] + 1},)", name
        )
    if len(col.shape) != 1 or col.size > grid.count:
        raise damaged(file.path, f"bsr_col_indices is {quoted(col.shape)} on a grid of {grid.count} blocks", name)
    if values.shape != (col.size, *grid.block):
        expected = (col.size, *grid.block)
        raise damaged(file.path, f"bsr_values is {quoted(values.shape)}, not {expected}", name)
    return BlockSparseEntry(name, values.dtype, layout, grid, col.size)


def _naturals(values: Any) -> bool:
    """A list of integers from 0 to 2**63 − 1."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_BYTES for value in values)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
