"""The gradient of a block-sparse weight on its kept blocks only: x (M, in), dy (M, out) -> (K, bc, br)."""

from __future__ import annotations

import struct
import threading
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.codegen.isa import Isa, chosen_isa
from sapp_cli.codegen.machine_code import MachineCode, load
from sapp_cli.codegen.threads import openmp, threads_worth
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.parts import cut_block_rows
from sapp_cli.runtime.sampled_code import ENTRIES, PANEL_ROWS, SampledShape, generate, sampled_shape

LEAST_PANELS = 2
"""Panels that are packed before they are multiplied, or one for each thread: no more than the second-level caches hold."""
FLOAT = 4
"""Bytes."""


class SampledProduct:
    """dW = dYᵀX for the blocks that are kept, on the CPU, in float32. Results do not depend on the number of threads.

    Each block's sums take in one row of x after the other. Entries beyond the edge of the matrix are 0.
    """

    def __init__(self, crow: Indices, columns: Indices, grid: BlockGrid, isa: Isa | None = None) -> None:
        """Indices of the kept blocks, as `Kernel` takes them; they must have been checked (`index_problem`)."""
        self._grid = grid
        self._shape = sampled_shape(isa or chosen_isa(), grid.block)
        self._crow, self._columns = np.array(crow, np.int32), np.array(columns, np.int32)
        self._indices = self._crow.ctypes.data, self._columns.ctypes.data
        self._code = _compiled(self._shape)

    def __call__(self, x: Tensor, dy: Tensor, threads: int | None = None) -> Tensor:
        """Gradients of y (M, out), for x (M, in), float32 -> of each kept block (K, bc, br), columns before outputs."""
        assert x.dtype is dy.dtype is torch.float32 and x.is_cpu and dy.is_cpu, f"no kernel for {x.dtype} on {x.device}"
        (out, columns), (br, bc), (block_rows, block_columns) = self._grid.matrix, self._grid.block, self._grid.size
        assert x.shape == (len(x), columns) and dy.shape == (len(x), out), f"{tuple(x.shape)} and {tuple(dy.shape)}"
        x, dy = x.contiguous(), dy.contiguous()
        height, kept = self._shape.padded_height, len(self._columns)
        gradient = torch.zeros(kept, bc, height)
        wanted = threads_worth(len(x) * kept * bc * height, threads or torch.get_num_threads())
        most = max(LEAST_PANELS, wanted)
        # Whole panels, though the last may be short: [panel][block column or row][row of x][entry].
        x_size, dy_size = (most * PANEL_ROWS * entries for entries in (block_columns * bc, block_rows * height))
        panels = _SCRATCH.address(x_size + dy_size)
        addresses = (panels, panels + FLOAT * x_size, gradient.data_ptr(), self._indices[0], self._indices[1])
        owners = cut_block_rows(self._crow, wanted)
        for first in range(0, len(x), most * PANEL_ROWS):
            rows = min(most * PANEL_ROWS, len(x) - first)
            count = -(-rows // PANEL_ROWS)
            packers = [(count * number // wanted, count * (number + 1) // wanted) for number in range(wanted)]
            places = x.data_ptr() + FLOAT * first * columns, dy.data_ptr() + FLOAT * first * out
            for entry, parts in zip(ENTRIES, (packers, owners), strict=True):
                job = (
                    len(parts),
                    *places,
                    columns,
                    out,
                    rows,
                    *addresses,
                    *(number for part in parts for number in part),
                )
                self._code.run(entry, struct.pack(f"{len(job)}q", *job), len(parts))
        return gradient if height == br else gradient[:, :, :br].contiguous()


class _Scratch(threading.local):
    """Memory for panels, one for all layers so that it stays in the cache: one for each thread that calls kernels."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)

    def address(self, size: int) -> int:
        if size > self._floats.numel():
            self._floats = torch.empty(size)
        return self._floats.data_ptr()


_SCRATCH = _Scratch()


@cache
def _compiled(shape: SampledShape) -> MachineCode:
    """The machine code of this shape; about a tenth of a second where it is new."""
    return load(generate(shape, openmp=openmp() is not None), shape.isa, ENTRIES)
