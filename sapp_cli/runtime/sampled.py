"""The gradient of a block-sparse weight on its kept blocks only: x (M, in), dy (M, out) -> (K, bc, br)."""

from __future__ import annotations

import ctypes
import struct
import threading
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.compile import LOCK, optimize
from sapp_cli.runtime.isa import Isa, host_isas
from sapp_cli.runtime.sampled_code import ENTRIES, PANEL_ROWS, SampledShape, generate, sampled_shape
from sapp_cli.runtime.threads import openmp, run_in_pool, threads_worth

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
        self._shape = sampled_shape(isa or host_isas()[0], grid.block)
        self._crow, self._columns = np.array(crow, np.int32), np.array(columns, np.int32)
        self._indices = self._crow.ctypes.data, self._columns.ctypes.data
        self._code = _compiled(self._shape, openmp=openmp() is not None)

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
        owners = self._owners(wanted)
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

    def _owners(self, threads: int) -> list[tuple[int, int]]:
        """Block rows of nearly equal work for each thread, first and one past the last."""
        goals = self._crow[-1] * np.arange(1, threads) / threads
        cuts = [0, *np.searchsorted(self._crow, goals).tolist(), len(self._crow) - 1]
        return [(first, last) for first, last in pairwise(cuts) if first < last]


class _Scratch(threading.local):
    """Memory for panels, one for all layers so that it stays in the cache: one for each thread that calls kernels."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)

    def address(self, size: int) -> int:
        if size > self._floats.numel():
            self._floats = torch.empty(size)
        return self._floats.data_ptr()


_SCRATCH = _Scratch()


@dataclass(frozen=True)
class _MachineCode:
    """The entries of a compiled module, and what keeps them in memory."""

    parts: dict[str, Any]
    """ctypes functions (address of the job, number of the part), which release the GIL."""
    teams: dict[str, int]
    """Addresses of the functions that each thread of an OpenMP team calls with the job."""
    engine: Any

    def run(self, entry: str, job: bytes, parts: int) -> None:
        parallel = openmp()
        if parts == 1:
            self.parts[entry](job, 0)
        elif parallel is not None and self.teams:
            parallel(self.teams[entry], job, parts, 0)
        else:
            run_in_pool(self.parts[entry], job, parts)


@cache
def _compiled(shape: SampledShape, *, openmp: bool) -> _MachineCode:
    """The machine code of this shape; about a tenth of a second where it is new."""
    with LOCK:
        machine, module = optimize(generate(shape, openmp=openmp), shape.isa)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    part = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    parts = {entry: part(engine.get_function_address(entry)) for entry in ENTRIES}
    teams = {entry: engine.get_function_address(f"{entry}_team") for entry in ENTRIES} if openmp else {}
    return _MachineCode(parts, teams, engine)
