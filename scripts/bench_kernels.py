"""Measure the block-sparse kernels against everything else there is on a CPU.

    python scripts/bench_kernels.py --threads 1 --out runs/kernels.json
    python scripts/bench_kernels.py --quick

Shapes × blocks × sparsities × batch sizes, all ways in turns in one process. For each: how many times faster than the best
dense way (`F.linear`, or the weight packed for oneDNN), and which share of the ideal 1/(1 − sparsity) that is. Ways:

    dense     torch.nn.functional.linear          onednn    the dense weight packed beforehand for oneDNN
    kernel    the generated kernel                torch     plain torch: gather and multiply, block row by block row
    bsr       torch.mm of a sparse BSR tensor     scipy     scipy.sparse.bsr_array @

The first ratio is of the medians, the second of the least disturbed turns. Of several sweeps each cell takes the one with the
median ratio. A way that is far behind in its first call is not repeated, and stands with that one time. Where others use the
machine as well, `--processor-time` leaves out what they take; it is for one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from scipy.sparse import bsr_array

from sapp_cli.checkpoint.block_sparse import indices
from sapp_cli.codegen.isa import Isa, host_isas
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import DENSE, ONEDNN, dense_ways
from sapp_cli.runtime.heap import keep_freed_memory
from sapp_cli.runtime.kernel import Kernel
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.plain import PlainProduct
from sapp_cli.runtime.timing import time_in_turns
from scripts.kernel_cells import KernelCell, bound, kept_at_random, sides

SHAPES = ((1536, 384), (3072, 768), (4096, 4096), (11008, 4096))
BLOCKS = ((8, 8), (16, 16), (32, 32), (64, 64), (16, 32))
SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.99)
ROWS = (1, 8, 128, 512)


@dataclass(frozen=True)
class Cell(KernelCell):
    """One measurement, judged by its kernel."""

    @property
    def speedup(self) -> float:
        """Of the kernel, over the best dense way."""
        return _over_best_dense(self.seconds)

    @property
    def least_speedup(self) -> float:
        """The same of the least disturbed turns: what to look at where others use the machine as well."""
        return _over_best_dense(self.least)

    @property
    def ideal(self) -> float:
        return 1 / (1 - self.sparsity)


def _over_best_dense(seconds: dict[str, float]) -> float:
    return min(seconds[way] for way in (DENSE, ONEDNN) if way in seconds) / seconds["kernel"]


def measure(
    matrix: tuple[int, int],
    block: tuple[int, int],
    sparsity: float,
    rows: int,
    dtype: torch.dtype,
    budget: float,
    only: Sequence[str] = (),
    isa: Isa | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Cell:
    """All ways to multiply random x by a random weight of which a random share of blocks is kept, seed 0."""
    generator = torch.Generator().manual_seed(0)
    grid = BlockGrid(matrix, block)
    kept = kept_at_random(grid, sparsity, generator)
    crow, col = indices(kept.numpy())
    values = torch.randn(len(col), *block, generator=generator).to(dtype)
    dense = torch.zeros(grid.size[0], grid.size[1], *block, dtype=dtype)
    dense[kept] = values
    dense = dense.transpose(1, 2).reshape(grid.padded)[: matrix[0], : matrix[1]].contiguous()
    x = torch.randn(rows, matrix[1], generator=generator).to(dtype)

    ways: dict[str, Callable[[], Any]] = {}
    for name, way in dense_ways(dense, None, rows).items():
        ways[name] = bound(way, x)
    ways["kernel"] = bound(
        Kernel(values, crow, col, None, grid, isa).for_shape(tuple(x.shape)), x
    )  # as a layer calls it
    ways["torch"] = bound(PlainProduct(values, torch.from_numpy(crow), torch.from_numpy(col), None, grid), x)
    if dtype == torch.float32 and grid.padded == matrix:
        if block[0] == block[1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch: its BSR tensors are in beta
                bsr = torch.sparse_bsr_tensor(torch.from_numpy(crow), torch.from_numpy(col), values, size=matrix)
            ways["bsr"] = lambda: torch.mm(bsr, x.t().contiguous()).t()
        theirs, transposed = bsr_array((values.numpy(), col, crow), shape=matrix), x.numpy().T.copy()
        ways["scipy"] = lambda: theirs @ transposed
    if only:
        ways = {name: way for name, way in ways.items() if name in only}
    expected = x.double() @ dense.double().t()
    worst = (ways["kernel"]().double() - expected).abs().max().item() / expected.abs().max().item()
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    assert worst <= allowed, f"the kernel is wrong by {worst:.1e}: {matrix} {block} {sparsity} {rows}"
    timings = time_in_turns(ways, budget=budget, least_turns=7, sample=2e-3, drop_hopeless=True, clock=clock)
    seconds = {name: timing.median for name, timing in timings.items()}
    least = {name: timing.least for name, timing in timings.items()}
    return Cell(matrix, block, sparsity, rows, str(dtype).removeprefix("torch."), seconds, least)


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    shapes = SHAPES[:2] if arguments.quick else SHAPES
    blocks = BLOCKS[:2] if arguments.quick else BLOCKS
    sparsities = arguments.sparsity or ((0.9,) if arguments.quick else SPARSITIES)
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    isa = next((isa for isa in host_isas() if isa.name == arguments.isa), None)
    clock = time.thread_time if arguments.processor_time else time.perf_counter
    with torch.inference_mode():
        for matrix, block, sparsity, rows in product(
            arguments.shape or shapes, arguments.block or blocks, sparsities, arguments.rows or ROWS
        ):
            yield measure(matrix, block, sparsity, rows, dtype, arguments.seconds, arguments.way or (), isa, clock)


def line(cell: Cell) -> str:
    """One row of the table."""
    others = "  ".join(
        f"{name} {cell.seconds[name] * 1e6:,.0f} ({cell.seconds['kernel'] / cell.seconds[name]:.2f})"
        for name in cell.seconds
        if name != "kernel"
    )
    what = f"{cell.matrix[0]:>5}×{cell.matrix[1]:<4} {cell.block[0]:>2}×{cell.block[1]:<2} {cell.sparsity:>5.0%} {cell.rows:>4}"
    ratios = f"{cell.speedup:>6.2f}× {cell.least_speedup:>6.2f}× {cell.speedup / cell.ideal:>5.0%}"
    return f"{what} {ratios}   kernel {cell.seconds['kernel'] * 1e6:,.0f} µs   {others}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument(
        "--isa",
        choices=[isa.name for isa in host_isas()],
        help="instructions of the kernel, else the best; dense ways obey ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS",
    )
    parser.add_argument("--quick", action="store_true", help="two shapes, two blocks, 90 %%")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell, about")
    parser.add_argument(
        "--sweeps",
        type=int,
        default=1,
        help="go over all cells so often: what disturbs the machine lasts longer than a cell",
    )
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of time as it passes")
    parser.add_argument("--shape", type=sides, action="append", metavar="OUTxIN")
    parser.add_argument("--block", type=sides, action="append", metavar="ROWSxCOLUMNS")
    parser.add_argument("--sparsity", type=float, action="append")
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument(
        "--way", action="append", help="only these ways; `kernel` and a dense one have to be among them"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args(argv)
    if arguments.processor_time and arguments.threads != 1:
        parser.error("--processor-time counts one thread; give --threads 1")
    torch.set_num_threads(arguments.threads)
    machine = this_machine(keeps_freed_memory=keep_freed_memory())
    print(machine.text + (f"; the kernel here for {arguments.isa}" if arguments.isa else ""), flush=True)
    print(
        "out×in  block  sparsity  rows  kernel over best dense: medians, least; share of ideal; µs (kernel's over theirs)",
        flush=True,
    )
    sweeps: list[list[Cell]] = []
    for _ in range(arguments.sweeps):
        sweeps.append([])
        for cell in cells(arguments):
            sweeps[-1].append(cell)
            print(line(cell), flush=True)
    found = [sorted(runs, key=lambda cell: cell.speedup)[len(runs) // 2] for runs in zip(*sweeps, strict=True)]
    if arguments.sweeps > 1:
        print("\nof each cell the sweep with the median ratio")
        print(*map(line, found), sep="\n", flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {**asdict(cell), "speedup": cell.speedup, "least_speedup": cell.least_speedup, "ideal": cell.ideal}
            for cell in found
        ]
        arguments.out.write_text(
            json.dumps({"machine": asdict(machine), "isa": arguments.isa, "cells": rows}, indent=2) + "\n"
        )
        print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
