"""The passes as functions of tensors."""

from __future__ import annotations

import struct
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sapp_cli.codegen.support import kernels_work
from sapp_cli.codegen.threads import openmp
from sapp_cli.grid import BlockGrid

if TYPE_CHECKING:
    from sapp_cli.codegen.isa import Isa
    from sapp_cli.codegen.machine_code import MachineCode

LEAST_WORK = 1 << 18
"""Entries that are worth a thread: some tens of microseconds."""
LEAST_WIDTH = 4
"""Blocks of fewer columns fill no vector; plain torch is as fast."""


class BlockPasses:
    """Passes over float32 matrices (out, in) on the CPU, contiguous, of whole blocks; one number a block is (R, C).

    Results do not depend on the number of threads. Results are written into tensors that the caller has made.
    """

    def __init__(self, block: tuple[int, int], code: MachineCode) -> None:
        self._block = block
        self._code = code

    def scale(self, matrix: Tensor, per_block: Tensor, out: Tensor) -> None:
        """Put matrix ⊙ spread(per_block) into `out`, which may be the matrix itself."""
        self._run("scale", (matrix, matrix, out), (per_block.contiguous(), None, None))

    def gradients(
        self, grad: Tensor, matrix: Tensor, per_block: Tensor, out: Tensor, sums: Tensor, squares: Tensor
    ) -> None:
        """Put grad ⊙ spread(per_block) into `out`, which may be `grad` itself, Σ_b grad ⊙ matrix into `sums`, and

        Σ_b (grad ⊙ matrix)² into `squares`.
        """
        self._run("gradients", (grad, matrix, out), (per_block.contiguous(), sums, squares))

    def product_squares(self, first: Tensor, second: Tensor, squares: Tensor) -> None:
        """Put Σ_b (first ⊙ second)² into `squares`."""
        self._run("squares", (first, second, second), (None, None, squares))

    def _run(
        self,
        entry: str,
        matrices: tuple[Tensor, Tensor, Tensor],
        blocks: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        """`matrices`: grad, matrix, out; `blocks`: scale, sums, squares."""
        grad, matrix, out = matrices
        rows, columns = matrix.shape
        size = block_rows, block_columns = rows // self._block[0], columns // self._block[1]
        assert all(_fits(tensor, (rows, columns)) for tensor in matrices), "no pass over such matrices"
        assert all(tensor is None or _fits(tensor, size) for tensor in blocks), (
            f"not one number for each of {size} blocks"
        )
        threads = min(torch.get_num_threads(), matrix.numel() // LEAST_WORK, block_rows) or 1
        parts = list(pairwise(block_rows * number // threads for number in range(threads + 1)))
        addresses = [
            0 if tensor is None else tensor.data_ptr() for tensor in (grad, matrix, blocks[0], out, *blocks[1:])
        ]
        job = [threads, block_columns, *addresses, *(number for part in parts for number in part)]
        self._code.run(entry, struct.pack(f"{len(job)}q", *job), threads)


def _fits(tensor: Tensor, shape: tuple[int, int]) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous() and tensor.shape == shape


def block_passes(grid: BlockGrid) -> BlockPasses | None:
    """Those for this grid's blocks; None where there are none: ragged or narrow blocks, or no llvmlite for this machine."""
    if grid.ragged or grid.block[1] < LEAST_WIDTH or not kernels_work():
        return None
    from sapp_cli.codegen.isa import chosen_isa

    return _compiled(grid.block, chosen_isa())


@cache
def _compiled(block: tuple[int, int], isa: Isa) -> BlockPasses | None:
    """A tenth of a second for blocks that are new."""
    from sapp_cli.codegen.machine_code import load
    from sapp_cli.passes.pass_code import ENTRIES, PassShape, generate

    try:
        code = load(generate(PassShape(isa, block), openmp=openmp() is not None), isa, ENTRIES)
    except RuntimeError:  # of LLVM, on a system that forbids new code
        return None
    return BlockPasses(block, code)
