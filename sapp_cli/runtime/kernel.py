"""A packed weight and its machine code as one callable: x (M, in) -> y (M, out)."""

from __future__ import annotations

from ctypes import c_int64

import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.compile import compiled
from sapp_cli.runtime.isa import Isa, host_isas
from sapp_cli.runtime.kernel_shape import kernel_shape
from sapp_cli.runtime.packing import pack
from sapp_cli.runtime.threads import cut_into_parts, openmp, run_in_pool

DTYPES = (torch.float32, torch.bfloat16)
PANEL_ROWS = 48
"""Rows of x that are packed at a time: four of the tallest tiles."""


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
        assert values.dtype in DTYPES and values.device.type == "cpu", f"no kernel for {values.dtype} on {values.device}"
        shape = kernel_shape(isa or host_isas()[0], grid.block, bf16=values.dtype == torch.bfloat16)
        self.weight = pack(values, crow, columns, bias, grid, shape)
        self.dtype = values.dtype
        self._code = compiled(shape, openmp=openmp() is not None)
        weight = self.weight
        self._addresses = (
            weight.values.data_ptr(),
            weight.crow.ctypes.data,
            weight.columns.ctypes.data,
            weight.bias.data_ptr(),
        )
        columns_padded = grid.size[1] * shape.padded_width
        self._panel_row_bytes = columns_padded * shape.arithmetic.panel_bytes

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """(M, in) -> (M, out), in the dtype of the weight."""
        grid, shape = self.weight.grid, self.weight.shape
        assert x.dtype == self.dtype and x.device.type == "cpu", f"x is {x.dtype} on {x.device}, not {self.dtype}"
        assert x.shape[1:] == grid.matrix[1:], f"x is {tuple(x.shape)} for a weight of {grid.matrix}"
        x = x.detach().contiguous()
        rows, (out, columns) = len(x), grid.matrix
        y = torch.empty((rows, out), dtype=self.dtype)
        if not y.numel():
            return y
        panel_rows = min(rows, PANEL_ROWS)
        panel_bytes = -(-panel_rows * self._panel_row_bytes // 64) * 64
        parts = cut_into_parts(rows, self.weight.crow, shape.block_size, threads or torch.get_num_threads())
        panels = torch.empty(panel_bytes * len(parts), dtype=torch.uint8)
        entries = [x.data_ptr(), y.data_ptr(), columns, out, *self._addresses, panels.data_ptr()]
        entries += [panel_bytes, panel_rows, int(rows == 1), len(parts)]
        for part in parts:
            entries += part
        job = (c_int64 * len(entries))(*entries)
        self._run(job, len(parts))
        return y

    def _run(self, job: object, parts: int) -> None:
        parallel, code = openmp(), self._code
        if parts == 1:
            code.run_part(job, 0)
        elif parallel is not None and code.run_team is not None:
            parallel(code.run_team, job, parts, 0)
        else:
            run_in_pool(code.run_part, job, parts)
