"""A packed weight and its machine code as one callable: x (M, in) -> y (M, out)."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.codegen.isa import Isa, chosen_isa
from sapp_cli.codegen.machine_code import MachineCode, load
from sapp_cli.codegen.threads import openmp, threads_worth
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.driver import ENTRY, generate
from sapp_cli.runtime.kernel_shape import LONG_ROW, KernelShape, kernel_shape
from sapp_cli.runtime.packing import pack
from sapp_cli.runtime.parts import cut_into_parts

DTYPES = (torch.float32, torch.bfloat16)
MOST_PLANS = 256
"""Shapes of x that a kernel remembers how to go about."""


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
        *,
        scattered: bool = False,
    ) -> None:
        """Values (K, br, bc) on the CPU, of a dtype in DTYPES; indices must have been checked (`index_problem`).

        `scattered`: for x whose rows are not one behind the other (`for_places`).
        """
        assert values.dtype in DTYPES and values.device.type == "cpu", (
            f"no kernel for {values.dtype} on {values.device}"
        )
        long_rows = values.nbytes > LONG_ROW * grid.size[0]
        shape = kernel_shape(isa or chosen_isa(), grid.block, bf16=values.dtype == torch.bfloat16, long_rows=long_rows)
        shape = replace(shape, scattered=scattered)
        self.weight = pack(values, crow, columns, bias, grid, shape)
        self._code = _compiled(shape)
        self._out, self._in = grid.matrix
        self._plans: dict[tuple[tuple[int, ...], int], Plan] = {}
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
        """(…, in) -> (…, out), in the dtype of the weight; on as many threads as torch uses, if there is work for them."""
        return self.for_shape(tuple(x.shape), threads)(x)

    def for_shape(self, shape: tuple[int, ...], threads: int | None = None) -> Plan:
        """The product for x (…, in) of this shape: all that does not depend on where x lies, once."""
        threads = threads or torch.get_num_threads()
        plan = self._plans.get((shape, threads))
        if plan is None:
            assert not self.weight.shape.scattered, "this kernel has to be told where the rows of x are"
            assert shape[-1] == self._in, f"x is {shape} for a weight of {self.weight.grid.matrix}"
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            plan = self._plans[shape, threads] = self._plan(math.prod(shape[:-1]), threads, shape, shape[:-1])
        return plan

    def for_places(self, shape: tuple[int, ...], rows: Tensor, columns: Tensor, size: tuple[int, ...]) -> Plan:
        """The product for contiguous x of this shape whose row i has block column c at entry rows[i] + columns[c].

        Places int64 (M,) and (C,) on the CPU, not negative; y is (*size, out). Of a kernel that was made `scattered`.
        """
        assert self.weight.shape.scattered, "this kernel wants the rows of x one behind the other"
        width = self.weight.grid.block[1]
        widths = (self._in - width * torch.arange(len(columns))).clamp(max=width)  # the last block may be cut off
        last = int(rows.max() + (columns + widths).max())
        assert last <= math.prod(shape), f"entry {last} of an x of {shape}"
        return self._plan(len(rows), torch.get_num_threads(), shape, size, rows, columns)

    def _plan(self, rows: int, threads: int, shape: tuple[int, ...], size: tuple[int, ...], *places: Tensor) -> Plan:
        cut = self.weight.shape
        parts = cut_into_parts(rows, self.weight.crow, threads_worth(rows * self._work, threads))
        panel_rows = min(rows, cut.panel_rows)
        panel_bytes = cut.padded_rows(panel_rows) * self._panel_row_bytes
        panel_bytes = (panel_bytes + 63) & ~63  # whole cache lines: threads must not share one
        tables = [place.data_ptr() for place in places] or [0, 0]
        numbers = [
            *self._addresses,
            *tables,
            panel_bytes,
            panel_rows,
            rows == 1,
            len(parts),
            *chain.from_iterable(parts),
        ]
        job = struct.pack(f"{len(numbers)}q", *numbers)
        return Plan(
            shape,
            (*size, self._out),
            self.weight.values.dtype,
            self._code.runner(ENTRY, len(parts)) if rows * self._out else _nothing,
            job,
            panel_bytes * len(parts),
            (self.weight, *places),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """The product with one weight for x of one shape."""

    shape: tuple[int, ...]
    """Of x."""
    result: tuple[int, ...]
    """Shape of y."""
    dtype: torch.dtype
    run: Callable[[bytes], object]
    """Computes a job, on as many threads as the plan is for."""
    job: bytes
    """JOB of driver.py after the three places, then PART for each part."""
    scratch: int
    """Bytes of all panels."""
    kept: tuple[object, ...]
    """Whose addresses are in the job."""

    def __call__(self, x: Tensor) -> Tensor:
        """As contiguous memory."""
        dtype = self.dtype
        assert x.shape == self.shape and x.dtype is dtype and x.is_cpu, (
            f"x is {tuple(x.shape)} of {x.dtype} on {x.device}, not {self.shape} of {dtype}"
        )
        # A small product takes a few microseconds, of which each line here is a part: torch.empty is faster without a tuple.
        x = x.resolve_neg().contiguous() if x.is_neg() else x.contiguous()
        y = torch.empty(*self.result, dtype=dtype)
        self.run(_PLACES.pack(x.data_ptr(), y.data_ptr(), _SCRATCH.address(self.scratch)) + self.job)
        return y


def _nothing(job: bytes) -> None:
    """For y without entries."""


@cache
def _compiled(shape: KernelShape) -> MachineCode:
    """The machine code of this shape; about a quarter of a second where it is new."""
    return load(generate(shape, openmp=openmp() is not None), shape.isa, [ENTRY])


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
