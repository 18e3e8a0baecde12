"""A block-sparse weight as the kernels read it: columns before outputs, taller blocks cut, edges filled with zeros.

R, K: block rows and kept blocks of the weight.  br, bc: rows and columns of its blocks.
Rk, Kk: the same counts after tall blocks were cut into `height` rows each; bk: height, padded; s: columns of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import Indices, block_rows
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.kernel_shape import KernelShape


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """What a kernel is given. The indices are private copies of checked ones: nobody else can change them."""

    grid: BlockGrid
    shape: KernelShape
    values: Tensor  # (Kk, bc/s, bk, s), contiguous, of the weight's dtype
    crow: Indices  # (Rk + 1,)
    columns: Indices  # (Kk,)
    bias: Tensor  # fp32 (Rk · bk,), zeros where there is none

    @property
    def block_rows(self) -> int:
        """Rk."""
        return len(self.crow) - 1


def input_major(values: Tensor) -> Tensor:
    """The same values (K, br, bc), laid out in memory as (K, bc, br): what most kernels read without a copy."""
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def pack(
    values: Tensor, crow: Indices, columns: Indices, bias: Tensor | None, grid: BlockGrid, shape: KernelShape
) -> PackedWeight:
    """The weight of checked indices, packed; shares memory with `values` where their layout allows it."""
    (br, bc), height = grid.block, shape.height
    pieces = br // height
    assert pieces * height == br and bc == shape.width, f"a kernel of {shape.name} for blocks of {grid.block}"
    step, padded_height, padded_width = shape.arithmetic.step, shape.padded_height, shape.padded_width
    crow, columns = np.array(crow, np.int32), np.array(columns, np.int32)
    detached = values.detach()
    if pieces > 1:
        detached, crow, columns = _cut(detached, crow, columns, pieces)
    detached = F.pad(detached, (0, padded_width - bc, 0, padded_height - height)) if _padded(shape) else detached
    by_step = detached.reshape(len(columns), padded_height, padded_width // step, step).permute(
        0, 2, 1, 3
    )  # (Kk, bc/s, bk, s)
    return PackedWeight(grid, shape, by_step.contiguous(), crow, columns, _bias(bias, grid, shape))


def _padded(shape: KernelShape) -> bool:
    return (shape.padded_height, shape.padded_width) != (shape.height, shape.width)


def _cut(values: Tensor, crow: Indices, columns: Indices, pieces: int) -> tuple[Tensor, Indices, Indices]:
    """Blocks of `pieces` pieces each, one above the other, as blocks and block rows of their own."""
    kept, br, bc = values.shape
    rows = block_rows(crow)  # (K,)
    piece = np.arange(pieces)
    owner = (rows[:, None] * pieces + piece).ravel()  # (K · pieces,): block row of each piece
    order = np.argsort(owner, kind="stable")
    counts = np.repeat(np.diff(crow), pieces)
    cut_crow = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    cut = values.reshape(kept * pieces, br // pieces, bc)[torch.from_numpy(order)]
    return cut, cut_crow, np.repeat(columns, pieces)[order]


def _bias(bias: Tensor | None, grid: BlockGrid, shape: KernelShape) -> Tensor:
    """(Rk · bk,): each piece's outputs, then zeros up to whole vectors."""
    filled = torch.zeros(grid.padded[0])
    if bias is not None:
        filled[: grid.matrix[0]] = bias.detach().float()
    return F.pad(filled.view(-1, shape.height), (0, shape.padded_height - shape.height)).flatten()
