"""Measure the block-sparse kernels against everything else there is on a GPU.

    python scripts/bench_kernels_cuda.py --out runs/kernels-cuda.json
    python scripts/bench_kernels_cuda.py --quick
    python scripts/bench_kernels_cuda.py --dtype bf16 --shape 4096x4096 --block 64 --sparsity 0.9 --rows 2048

Shapes × blocks × sparsities × rows of x × dtypes, all ways in turns in one process, compared with a float64 product before
they are timed. Ways:

    dense        torch.nn.functional.linear
    triton-…     our Triton kernel, one for each tile: rows of x × outputs × columns, warps, stages
    torch-bsr    torch.sparse._triton_ops.bsr_dense_addmm, with torch's own settings
    torch        plain torch: gather and multiply, block row by block row

A line gives the best tile over dense and over torch-bsr, and then what users get: a `BlockSparseLinear`, which measures and
chooses by itself, against a `torch.nn.Linear`, timed anew after the choice. Times are medians of calls in a row, the launch
included; a weight that fits the L2 cache stays there, which in a whole model it would not, and a dense one has more to lose.

TF32 is off unless --tf32 is given: float32 is multiplied as float32 by all ways. The first run on a machine compiles each tile
for each block and dtype, a second each. Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.block_sparse import indices
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import (
    DENSE,
    PLAIN,
    TORCH_BSR,
    TRITON,
    Way,
    bucket_of,
    dense_ways,
    family,
    most_rows,
)
from sapp_cli.runtime.gpu import tf32_allowed, wait_for
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.plain import PlainProduct, dense_weight
from sapp_cli.runtime.timing import time_in_turns
from sapp_cli.runtime.torch_bsr import TorchBsrProduct, is_possible
from sapp_cli.runtime.triton_tiles import tiles
from scripts.kernel_cells import KernelCell, bound, kept_at_random, sides

SHAPES = ((4096, 4096), (11008, 4096), (14336, 4096), (3072, 768))
BLOCKS = ((16, 16), (32, 32), (64, 64), (128, 128), (8, 8))
SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.99)
ROWS = (1, 16, 128, 512, 2048, 8192)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Most that an output may be off, as a share of the largest one."""
TF32_TOLERANCE = 2e-3
CHECKED_ROWS = 128
"""First and last rows of x of which the outputs are compared."""


@dataclass(frozen=True)
class Weight:
    """A random block-sparse weight."""

    grid: BlockGrid
    values: Tensor  # (K, br, bc), columns first in memory, as a BlockSparseLinear holds them
    crow: Tensor
    col: Tensor
    dense: Tensor  # (out, in)


@dataclass(frozen=True)
class Cell(KernelCell):
    """One measurement, judged by our kernel's best tile, and by the layer that chooses by itself."""

    failed: dict[str, str]
    """Ways that could not be run here, and what they said."""
    chosen: str
    """By the layer itself."""
    layer: dict[str, float]
    """Medians of a `torch.nn.Linear` and the `BlockSparseLinear`."""

    @property
    def tile(self) -> str | None:
        """The fastest way of our kernel."""
        return min((way for way in self.seconds if family(way) == TRITON), key=self.seconds.__getitem__, default=None)

    @property
    def over_dense(self) -> float | None:
        """How many times faster our kernel is than dense."""
        return self._over(DENSE)

    @property
    def over_torch(self) -> float | None:
        """How many times faster our kernel is than torch's; None where torch has none."""
        return self._over(TORCH_BSR)

    @property
    def layer_over_dense(self) -> float:
        """How many times faster the layer is than a dense one: 1 or a little below where it chose dense."""
        return self.layer["dense"] / self.layer["block_sparse"]

    def as_json(self) -> dict[str, Any]:
        ratios = {"over_dense": self.over_dense, "over_torch": self.over_torch}
        return {**asdict(self), "tile": self.tile, **ratios, "layer_over_dense": self.layer_over_dense}

    def _over(self, way: str) -> float | None:
        return None if self.tile is None or way not in self.seconds else self.seconds[way] / self.seconds[self.tile]


def random_weight(
    matrix: tuple[int, int], block: tuple[int, int], sparsity: float, dtype: torch.dtype, device: torch.device
) -> Weight:
    """A random share of the blocks, seed 0."""
    generator = torch.Generator().manual_seed(0)
    grid = BlockGrid(matrix, block)
    crow, col = (
        torch.from_numpy(index).to(device) for index in indices(kept_at_random(grid, sparsity, generator).numpy())
    )
    made = torch.randn(len(col), block[1], block[0], generator=generator).to(device, dtype)
    values = made.transpose(1, 2)
    return Weight(grid, values, crow, col, dense_weight(values, crow, col, grid))


@torch.inference_mode()
def measure(weight: Weight, rows: int, budget: float) -> Cell:
    """All ways to multiply random x by the weight, and the layer; AssertionError for one that is wrong."""
    device, dtype = weight.values.device, weight.values.dtype
    x = torch.randn(rows, weight.grid.matrix[1], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    failed: dict[str, str] = {}
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, make in _makers(weight, rows).items():
        try:
            way = make()
            y = way(x)
            wait_for(x)
        except Exception as error:  # of any kind: a compiler, too little memory, what is private to torch
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        _check(name, y, x, weight)
        ways[name] = bound(way, x)
    timings = time_in_turns(ways, budget=budget, least_turns=7, drop_hopeless=True, finish=lambda: wait_for(x))
    chosen, layer = _measure_layer(weight, x, budget)
    return Cell(
        weight.grid.matrix,
        weight.grid.block,
        round(1 - len(weight.col) / weight.grid.count, 4),
        rows,
        str(dtype).removeprefix("torch."),
        {name: timing.median for name, timing in timings.items()},
        {name: timing.least for name, timing in timings.items()},
        failed,
        chosen,
        layer,
    )


def _makers(weight: Weight, rows: int) -> dict[str, Callable[[], Way]]:
    """{name of the way: what prepares it}."""
    grid, dtype = weight.grid, weight.values.dtype
    given = weight.values, weight.crow, weight.col, None, grid
    makers: dict[str, Callable[[], Way]] = {DENSE: lambda: dense_ways(weight.dense, None, rows)[DENSE]}
    from sapp_cli.runtime.triton_product import TritonProduct, TritonWeight

    ours = TritonWeight.of(*given)
    for tile in tiles(most_rows(bucket_of(rows)), grid.block, dtype, tf32=tf32_allowed()):
        makers[tile.name] = lambda tile=tile: TritonProduct(ours, tile)
    if is_possible(grid.block, dtype):
        makers[TORCH_BSR] = lambda: TorchBsrProduct(*given)
    makers[PLAIN] = lambda: PlainProduct(*given)
    return makers


def _check(name: str, y: Tensor, x: Tensor, weight: Weight) -> None:
    """Compare the first and the last rows with a float64 product."""
    rows = torch.cat([torch.arange(len(x))[:CHECKED_ROWS], torch.arange(len(x))[CHECKED_ROWS:][-CHECKED_ROWS:]])
    expected = x[rows].double() @ weight.dense.double().t()
    off = (y[rows].double() - expected).abs().max().item() / (expected.abs().max().item() or 1.0)
    dtype = weight.values.dtype
    allowed = TF32_TOLERANCE if dtype == torch.float32 and tf32_allowed() else TOLERANCES[dtype]
    assert off <= allowed, f"{name} is wrong by {off:.1e} of the largest output: {weight.grid}, {len(x)} rows, {dtype}"


def _measure_layer(weight: Weight, x: Tensor, budget: float) -> tuple[str, dict[str, float]]:
    """(what the layer chose, medians of the dense and the block-sparse layer)."""
    out, columns = weight.grid.matrix
    dense = nn.Linear(columns, out, bias=False, device=x.device, dtype=x.dtype)
    dense.weight.copy_(weight.dense)
    sparse = BlockSparseLinear(weight.grid.matrix, weight.values, weight.crow, weight.col)
    _check("the layer", sparse(x), x, weight)
    layers = {"dense": lambda: dense(x), "block_sparse": lambda: sparse(x)}
    timings = time_in_turns(layers, budget=budget / 2, least_turns=7, finish=lambda: wait_for(x))
    return sparse.choices[-1].way, {name: timing.median for name, timing in timings.items()}


def cells(arguments: argparse.Namespace, device: torch.device) -> Iterator[Cell]:
    quick = arguments.quick
    shapes = arguments.shape or (SHAPES[:1] if quick else SHAPES)
    blocks = arguments.block or (((16, 16), (64, 64)) if quick else BLOCKS)
    sparsities = arguments.sparsity or ((0.9,) if quick else SPARSITIES)
    rows = arguments.rows or ((1, 128, 2048) if quick else ROWS)
    dtypes = arguments.dtype or (("bf16",) if quick else tuple(DTYPES))
    for dtype, matrix, block, sparsity in product(dtypes, shapes, blocks, sparsities):
        weight = random_weight(matrix, block, sparsity, DTYPES[dtype], device)
        for count in rows:
            yield measure(weight, count, arguments.seconds)


HEADER = "dtype  out×in  block  sparsity  rows  best tile over dense, over torch-bsr; layer over dense: its choice; µs"


def line(cell: Cell) -> str:
    """One row of the table."""
    what = (
        f"{cell.dtype:>8} {cell.matrix[0]:>5}×{cell.matrix[1]:<4} {cell.block[0]:>3}×{cell.block[1]:<3} {cell.sparsity:>5.0%} "
        f"{cell.rows:>4}"
    )
    ratios = "  ".join("    –" if ratio is None else f"{ratio:>5.2f}×" for ratio in (cell.over_dense, cell.over_torch))
    times = "  ".join(
        f"{way} {seconds * 1e6:,.1f}" for way, seconds in sorted(cell.seconds.items(), key=lambda item: item[1])
    )
    failed = "".join(f"  {way} failed: {why}" for way, why in cell.failed.items())
    return f"{what}  {ratios}  {cell.layer_over_dense:>5.2f}×: {cell.chosen}   {times}{failed}"


def card(device: torch.device) -> dict[str, str]:
    """What was measured on; figures without this mean nothing."""
    import triton

    major, minor = torch.cuda.get_device_capability(device)
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": triton.__version__,
        "tf32": str(tf32_allowed()),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, two blocks, 90 %%, bf16")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each cell, about")
    parser.add_argument("--shape", type=sides, action="append", metavar="OUTxIN")
    parser.add_argument("--block", type=sides, action="append", metavar="ROWSxCOLUMNS")
    parser.add_argument("--sparsity", type=float, action="append")
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    parser.add_argument("--tf32", action="store_true", help="let float32 be multiplied as TF32, by all ways")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench_kernels_cuda: no GPU that torch can use is here, so there is nothing to measure", file=sys.stderr)
        raise SystemExit(2)
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    device = torch.device("cuda", torch.cuda.current_device())
    machine = card(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    print(HEADER, flush=True)
    found = []
    for cell in cells(arguments, device):
        found.append(cell)
        print(line(cell), flush=True)
        if arguments.out is not None:  # after each: a run of an hour may be interrupted
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            document = {"machine": machine, "cells": [cell.as_json() for cell in found]}
            arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    worst = min(found, key=lambda cell: cell.layer_over_dense)
    print(f"the slowest layer against dense: {line(worst)}")


if __name__ == "__main__":
    main()
