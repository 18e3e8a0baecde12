"""Is any block-sparse layer slower than the `torch.nn.Linear` it stands for? Small ones, where a call is most of the time.

    python scripts/bench_small_layers.py --threads 1

Shapes × blocks × shares kept × rows of x, both modules called in turns as a model calls them. For each: how many times faster
the block-sparse one is, and the way it chose. At the end the least ratio for each size of block.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.timing import time_in_turns
from scripts.kernel_cells import kept_at_random, sides

SHAPES = ((128, 128), (64, 256), (256, 256), (384, 384))
BLOCKS = ((1, 16), (4, 4), (8, 8), (16, 16), (32, 32), (16, 32), (64, 64))
SPARSITIES = (0.31, 0.7, 0.9)
ROWS = (1, 2, 8, 32, 128)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", type=sides, action="append", metavar="OUTxIN")
    parser.add_argument("--block", type=sides, action="append", metavar="ROWSxCOLUMNS")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each cell, about")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print(f"{this_machine().text}\nout×in  block  sparsity: rows, times faster, way", flush=True)
    least: dict[tuple[int, int], float] = {}
    with torch.inference_mode():
        for matrix, block, sparsity in product(arguments.shape or SHAPES, arguments.block or BLOCKS, SPARSITIES):
            linear, sparse = layers(matrix, block, sparsity)
            shown = []
            for rows in ROWS:
                x = torch.randn(rows, matrix[1])
                ratio = ratio_of(partial(linear, x), partial(sparse, x), arguments.seconds)
                least[block] = min(ratio, least.get(block, ratio))
                shown.append(f"{rows:>3} {ratio:5.2f} {sparse.choices[-1].way:<6}")
            print(
                f"{matrix[0]:>4}×{matrix[1]:<4} {block[0]:>2}×{block[1]:<2} {sparsity:>4.0%}: {'  '.join(shown)}",
                flush=True,
            )
    for block, ratio in least.items():
        print(f"least of {block[0]}×{block[1]}: {ratio:.2f}")


def layers(matrix: tuple[int, int], block: tuple[int, int], sparsity: float) -> tuple[nn.Linear, BlockSparseLinear]:
    """A layer with random blocks of zeros, dense and block-sparse."""
    linear = nn.Linear(matrix[1], matrix[0])
    kept = kept_at_random(BlockGrid(matrix, block), sparsity, torch.Generator().manual_seed(0))
    linear.weight *= kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return linear.eval(), BlockSparseLinear.from_dense(linear, block).eval()


def ratio_of(dense: Callable[[], Any], sparse: Callable[[], Any], seconds: float) -> float:
    """Time of the dense call over that of the block-sparse one, medians."""
    sparse()  # chooses
    times = time_in_turns({"dense": dense, "sparse": sparse}, budget=seconds, sample=2e-3)
    return times["dense"].median / times["sparse"].median


if __name__ == "__main__":
    main()
