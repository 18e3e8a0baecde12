"""Checkpoints for the tests: written by sapp, or byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sapp_cli.checkpoint.block_sparse import gather, kept_blocks, to_matrix
from sapp_cli.checkpoint.block_sparse_file import block_sparse_metadata, block_sparse_out
from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.checkpoint.write import TensorOut, write_safetensors
from sapp_cli.grid import BlockGrid, MatrixLayout

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
ALL_BUT_COMPLEX = tuple(name for name in DTYPES if name != "C64")


def frame(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def save(path: Path, tensors: Mapping[str, tuple[str, Bits]], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of name -> (dtype, entries in storage dtype)."""
    outs = [
        TensorOut(name, dtype, array.shape, lambda array=array: array)  # type: ignore[misc]
        for name, (dtype, array) in tensors.items()
    ]
    write_safetensors(path, outs, metadata)
    return path


def save_floats(path: Path, **tensors: Any) -> Path:
    """A safetensors file of float32 tensors."""
    return save(path, {name: ("F32", np.asarray(array, np.float32)) for name, array in tensors.items()})


def save_block_sparse(
    path: Path, name: str, dtype: str, array: Bits, layout: MatrixLayout, grid: BlockGrid, **tied: str
) -> Path:
    """A file with one weight in the block-sparse format."""
    matrix = to_matrix(array, layout)
    kept = kept_blocks(matrix, grid, DTYPES[dtype])
    outs = block_sparse_out(name, dtype, grid, kept, lambda: gather(matrix, grid, kept))
    write_safetensors(path, outs, block_sparse_metadata({name: (layout, grid)}, tied))
    return path


def random_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], zeros: float = 0.0) -> Bits:
    """Random entries of any bit pattern (NaN, inf and −0 among them), some of them 0."""
    kind = DTYPES[dtype]
    if dtype == "BOOL":
        return rng.random(shape) < 1 - zeros
    size = int(np.prod(shape)) * kind.itemsize
    bits = rng.integers(0, 256, size, np.uint8).view(kind.storage).reshape(shape)
    return np.where(rng.random(shape) < zeros, kind.storage.type(0), bits)


def same_bits(one: Bits, other: Bits) -> bool:
    """Equal dtype, shape and bits: NaN equals NaN, −0 differs from +0."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )
