"""Block-sparse products in plain torch: the way without a kernel, and the gradients. Any dtype, any device.

M: rows of x.  R, C: block rows and columns.  br, bc: rows and columns of a block.  n: kept blocks of a block row.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.grid import BlockGrid


class PlainProduct:
    """x Wᵀ, and y W for its gradient: for each block row, the columns it needs are gathered and multiplied at once."""

    def __init__(self, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid) -> None:
        """Values (K, br, bc) with checked indices crow (R + 1,), col (K,)."""
        self._values = values.detach()
        self._crow: list[int] = crow.tolist()
        self._col = col.to(values.device, torch.int64)
        self._bias = None if bias is None else bias.detach()
        self._grid = grid

    def __call__(self, x: Tensor) -> Tensor:
        """(M, in) -> (M, out)."""
        (rows, columns), (br, bc), (out, in_features) = self._grid.size, self._grid.block, self._grid.matrix
        blocks = F.pad(x, (0, columns * bc - in_features)).view(len(x), columns, bc)  # (M, C, bc)
        y = x.new_zeros(len(x), rows * br)
        for row, (first, last) in enumerate(zip(self._crow[:-1], self._crow[1:], strict=True)):
            if first < last:
                gathered = blocks[:, self._col[first:last]].flatten(1)  # (M, n·bc)
                weights = self._values[first:last].transpose(1, 2).reshape(-1, br)  # (n·bc, br)
                y[:, row * br : (row + 1) * br] = gathered @ weights
        y = y[:, :out]
        return y.contiguous() if self._bias is None else y + self._bias

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Of y (M, out) -> of x (M, in)."""
        (rows, columns), (br, bc), (out, in_features) = self._grid.size, self._grid.block, self._grid.matrix
        padded = F.pad(gradient, (0, rows * br - out))
        wide = torch.float32 if gradient.dtype in (torch.float16, torch.bfloat16) else gradient.dtype
        blocks = gradient.new_zeros(len(gradient), columns, bc, dtype=wide)  # (M, C, bc)
        for row, (first, last) in enumerate(zip(self._crow[:-1], self._crow[1:], strict=True)):
            if first < last:
                weights = self._values[first:last].transpose(0, 1).reshape(br, -1)  # (br, n·bc)
                parts = padded[:, row * br : (row + 1) * br] @ weights
                blocks.index_add_(1, self._col[first:last], parts.view(len(gradient), -1, bc).to(wide))
        return blocks.flatten(1)[:, :in_features].to(gradient.dtype)


def weight_gradient(x: Tensor, gradient: Tensor, crow: Tensor, col: Tensor, grid: BlockGrid) -> Tensor:
    """Of y (M, out), for x (M, in) -> of the kept blocks (K, bc, br), columns before outputs."""
    (rows, columns), (br, bc), (out, in_features) = grid.size, grid.block, grid.matrix
    blocks = F.pad(x, (0, columns * bc - in_features)).view(len(x), columns, bc)  # (M, C, bc)
    padded = F.pad(gradient, (0, rows * br - out))
    bounds, col = crow.tolist(), col.to(x.device, torch.int64)
    found = x.new_zeros(len(col), bc, br)
    for row, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            gathered = blocks[:, col[first:last]].flatten(1)  # (M, n·bc)
            found[first:last] = (gathered.t() @ padded[:, row * br : (row + 1) * br]).view(-1, bc, br)
    return found


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, grid: BlockGrid) -> Tensor:
    """The weight (out, in) with zeros where blocks were not kept, of checked indices."""
    (rows, columns), (br, bc), (out, in_features) = grid.size, grid.block, grid.matrix
    if values.is_meta:
        return values.new_empty(out, in_features)
    counts = (crow[1:] - crow[:-1]).to(torch.int64)
    owner = torch.arange(rows, device=values.device).repeat_interleave(counts.to(values.device))  # (K,)
    blocks = values.new_zeros(rows, columns, br, bc)
    blocks[owner, col.to(values.device, torch.int64)] = values.detach()
    return blocks.transpose(1, 2).reshape(rows * br, columns * bc)[:out, :in_features].contiguous()
