"""A packed weight and its machine code as one callable: x (M, in) -> y (M, out)."""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.compile import compiled
from sapp_cli.runtime.isa import Isa, host_isas
from sapp_cli.runtime.kernel_shape import LONG_ROW, kernel_shape
from sapp_cli.runtime.packing import pack
from sapp_cli.runtime.threads import cut_into_parts, openmp, run_in_pool, threads_worth

DTYPES = (torch.float32, torch.bfloat16)
MOST_PLANS = 256
"""Sizes of batch that a kernel remembers how to share out."""


class Kernel:
    """y = x Wᵀ + bias on the CPU, for one weight. Results do not depend on the number of threads.

    Sums are float32, in the order of the columns; for a single row in several interleaved chains. Blocks that are not kept are
    not looked at: an infinity or NaN in x that only meets those leaves no trace, as it would with a dense weight.
    """

    def __init__(
        self,
        values: Tensor,
        crow: Indices,
        columns: Indices,
        bias: Tensor | None,
        grid: BlockGrid,
        isa: Isa | None = None,
    ) -> None:
        """Values (K, br, bc) on the CPU, of a dtype in DTYPES; indices must have been checked (`index_problem`)."""
        assert values.dtype in DTYPES and values.device.type == "cpu", (
            f"no kernel for {values.dtype} on {values.device}"
        )
        long_rows = values.nbytes > LONG_ROW * grid.size[0]
        shape = kernel_shape(
            isa or host_isas()[0], grid.block, bf16=values.dtype == torch.bfloat16, long_rows=long_rows
        )
        self.weight = pack(values, crow, columns, bias, grid, shape)
        self.dtype = values.dtype
        self._code = compiled(shape, openmp=openmp() is not None)
        self._out, self._in = grid.matrix
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._work = self.weight.values.numel()  # multiplications for one row of x
        self._addresses = (
            self._in,
            self._out,
            self.weight.values.data_ptr(),
            self.weight.crow.ctypes.data,
            self.weight.columns.ctypes.data,
            self.weight.bias.data_ptr(),
        )
        self._panel_row_bytes = grid.size[1] * shape.padded_width * shape.arithmetic.panel_bytes

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """(M, in) -> (M, out), in the dtype of the weight; on as many threads as torch uses, if there is work for them."""
        assert x.dtype is self.dtype and x.is_cpu, f"x is {x.dtype} on {x.device}, not {self.dtype}"
        rows, columns = x.shape
        assert columns == self._in, f"x is {tuple(x.shape)} for a weight of {self.weight.grid.matrix}"
        x = x.contiguous()
        y = torch.empty((rows, self._out), dtype=self.dtype)
        if rows == 0 or self._out == 0:
            return y
        plan = self._plan(rows, threads or torch.get_num_threads())
        places = x.data_ptr(), y.data_ptr(), _SCRATCH.address(plan.scratch_bytes)
        self._run(_PLACES.pack(*places) + plan.job, plan.parts)
        return y

    def _plan(self, rows: int, threads: int) -> _Plan:
        """What a call is told besides the places of x, y and the panels; the same for all batches of so many rows."""
        plan = self._plans.get((rows, threads))
        if plan is None:
            parts = cut_into_parts(rows, self.weight.crow, threads_worth(rows * self._work, threads))
            shape = self.weight.shape
            panel_rows = min(rows, shape.panel_rows)
            panel_bytes = shape.padded_rows(panel_rows) * self._panel_row_bytes
            panel_bytes = (panel_bytes + 63) & ~63  # whole cache lines: threads must not share one
            numbers = [*self._addresses, panel_bytes, panel_rows, rows == 1, len(parts), *chain.from_iterable(parts)]
            plan = _Plan(struct.pack(f"{len(numbers)}q", *numbers), len(parts), panel_bytes * len(parts))
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[rows, threads] = plan
        return plan

    def _run(self, job: bytes, parts: int) -> None:
        parallel, code = openmp(), self._code
        if parts == 1:
            code.run_part(job, 0)
        elif parallel is not None and code.run_team is not None:
            parallel(code.run_team, job, parts, 0)
        else:
            run_in_pool(code.run_part, job, parts)


@dataclass(frozen=True)
class _Plan:
    job: bytes
    """JOB of driver.py after the three places, then PART for each part."""
    parts: int
    scratch_bytes: int


class _Scratch(threading.local):
    """Memory for panels, kept between calls: one for each thread that calls kernels."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._size = self._address = 0

    def address(self, size: int) -> int:
        if size > self._size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
            self._size, self._address = size, self._bytes.data_ptr()
        return self._address


_SCRATCH = _Scratch()
_PLACES = struct.Struct("3q")
