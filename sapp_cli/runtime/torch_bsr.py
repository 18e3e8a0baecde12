"""torch's own Triton kernel for block-sparse weights, as a way to compute: for blocks with sides of 16, 32, 64, …

It is private to torch, made for products of a sparse weight by columns, and wants whole tiles of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.grid import BlockGrid

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_SIDE = 16


class TorchBsrProduct:
    """y = x Wᵀ + bias on a GPU by `torch.sparse._triton_ops.bsr_dense_addmm`, with the settings torch has for this card."""

    def __init__(self, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid) -> None:
        """Of checked indices. Raises ImportError where this torch does not have it."""
        from torch.sparse._triton_ops import bsr_dense_addmm, bsr_dense_addmm_meta

        assert is_possible(grid.block, values.dtype), f"no kernel for {grid.block} blocks of {values.dtype}"
        self._multiply: Callable[..., Tensor] = bsr_dense_addmm
        self._settings: Callable[..., dict[str, Any]] = bsr_dense_addmm_meta
        self._grid = grid
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch: its BSR tensors are in beta
            self._weight = torch.sparse_bsr_tensor(crow, col, values.detach().contiguous(), size=grid.padded)
        below = grid.padded[0] - grid.matrix[0]
        self._bias = None if bias is None else F.pad(bias.detach(), (0, below))[:, None]  # (R·br, 1)
        self._meta: dict[int, dict[str, Any]] = {}

    @property
    def bytes(self) -> int:
        """Of the copy of the values."""
        return self._weight.values().nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """(M, in) -> (M, out)."""
        (out, columns), (padded_out, padded_columns) = self._grid.matrix, self._grid.padded
        rows = len(x)
        padded_rows = whole_tiles(rows, self._grid.block[0])
        if (padded_rows, padded_columns) != (rows, columns):
            x = F.pad(x, (0, padded_columns - columns, 0, padded_rows - rows))
        y = x.new_empty(padded_rows, padded_out)
        added = y.t() if self._bias is None else self._bias.expand(-1, padded_rows)
        beta = 0 if self._bias is None else 1
        meta = self._meta_for(padded_rows, beta, x.dtype)
        self._multiply(added, self._weight, x.t(), beta=beta, out=y.t(), meta=meta)
        return y[:rows, :out].contiguous()

    def _meta_for(self, rows: int, beta: int, dtype: torch.dtype) -> dict[str, Any]:
        """Tiles and warps, from torch's tables where they have this card and shape, else its defaults."""
        found = self._meta.get(rows)
        if found is None:
            (out, columns), (br, bc) = self._grid.padded, self._grid.block
            sparsity = round(1 - self._weight.values().numel() / max(1, out * columns), 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch: that its tables do not have this card
                found = dict(self._settings(out, columns, rows, br, bc, beta, 1, sparsity=sparsity, dtype=dtype))
            self._meta[rows] = found
        return found


def is_possible(block: tuple[int, int], dtype: torch.dtype) -> bool:
    """True for the blocks and dtypes that torch's kernel takes."""
    return dtype in DTYPES and all(side >= LEAST_SIDE and side & (side - 1) == 0 for side in block)


def whole_tiles(rows: int, height: int) -> int:
    """The least number of rows of x, at least `rows`, that torch's kernel takes for blocks of so many rows.

    It cuts them into tiles as high as a block; fewer are one tile, which must be a power of two and at least 16.
    """
    if rows >= height:
        return -(-rows // height) * height
    return max(LEAST_SIDE, 1 << (rows - 1).bit_length())
