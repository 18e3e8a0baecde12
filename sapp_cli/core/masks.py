"""The attention mask, block norms, and spreading one value a block over a weight.

out, in: a weight as a matrix.  R, C: block rows and columns.  br, bc: rows and columns inside one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.grid import BlockGrid, MatrixLayout


def attention(logits: Tensor) -> Tensor:
    """A = n·softmax(L) over all n blocks of a layer, (R, C), mean 1 (paper §3, Algorithm 1).

    Divided by fl(1/n), which is what softmax gives every block of equal logits, so that L = 0 yields exactly 1: the product
    n·fl(1/n) is not 1 for one n in eight, and a fresh mask must not change a bit of the checkpoint's function.
    """
    even = torch.tensor(1 / logits.numel(), dtype=logits.dtype, device=logits.device)
    return torch.softmax(logits.flatten(), 0).view(logits.shape) / even  # (R, C)


def attention_mask(logits: Tensor, density: float | None) -> Tensor:
    """A clamped to [density, 1/density], density = 1 − the layer's target sparsity; None: no clamp.

    The paper (App. C.1) writes the range [n·density, n/density]; with A scaled to mean 1 it is this one. A hard clamp without
    renormalization; blocks are ranked by the unclamped `attention`.
    """
    mask = attention(logits)
    return mask if density is None else mask.clamp(density, 1 / density)


def as_matrix(weight: Tensor, layout: MatrixLayout) -> Tensor:
    """The weight as its matrix (out, in); a view where the layout allows it."""
    return weight.permute(layout.axes).reshape(layout.matrix)


def from_matrix(matrix: Tensor, layout: MatrixLayout) -> Tensor:
    """The inverse of `as_matrix`: (out, in) -> the weight's own shape, a view."""
    return matrix.reshape(layout.permuted_shape).permute(layout.inverse_axes)


def as_blocks(matrix: Tensor, grid: BlockGrid) -> Tensor:
    """The matrix as (R, br, C, bc); a view if the grid is not ragged, else a copy padded with zeros."""
    (rows, columns), (br, bc) = grid.size, grid.block
    if grid.ragged:
        padding = (0, grid.padded[1] - grid.matrix[1], 0, grid.padded[0] - grid.matrix[0])
        matrix = F.pad(matrix, padding)
    return matrix.reshape(rows, br, columns, bc)


def block_norms(matrix: Tensor, grid: BlockGrid) -> Tensor:
    """‖W_b‖_F of every block in fp32, (R, C); differentiable, with gradient 0 at a zero block."""
    norms: Tensor = torch.linalg.vector_norm(as_blocks(matrix.float(), grid), dim=(1, 3))
    return norms


def spread(per_block: Tensor, grid: BlockGrid) -> Tensor:
    """One value a block (R, C) -> the same value at every entry of the block (out, in)."""
    (rows, columns), (br, bc) = grid.size, grid.block
    whole = per_block.view(rows, 1, columns, 1).expand(rows, br, columns, bc).reshape(grid.padded)
    return whole[: grid.matrix[0], : grid.matrix[1]]


def scale_blocks(matrix: Tensor, per_block: Tensor, grid: BlockGrid) -> Tensor:
    """Matrix ⊙ spread(per_block), (out, in); differentiable in both, saving nothing but its two inputs."""
    return _ScaleBlocks.apply(matrix, per_block, grid)  # type: ignore[no-any-return, no-untyped-call]


def _scale(matrix: Tensor, per_block: Tensor, grid: BlockGrid) -> Tensor:
    if grid.ragged:
        return matrix * spread(per_block, grid)
    (rows, columns), _ = grid.size, grid.block
    return (as_blocks(matrix, grid) * per_block.view(rows, 1, columns, 1)).view(grid.matrix)


class _ScaleBlocks(torch.autograd.Function):
    """The product's backward by hand: autograd would keep the spread mask, as large as the weight, for every layer."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, per_block: Tensor, grid: BlockGrid) -> Tensor:
        ctx.grid = grid
        ctx.save_for_backward(matrix, per_block)
        return _scale(matrix, per_block, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        matrix, per_block = ctx.saved_tensors
        grad_matrix = _scale(grad, per_block, ctx.grid) if ctx.needs_input_grad[0] else None
        grad_blocks = None
        if ctx.needs_input_grad[1]:
            grad_blocks = (as_blocks(grad, ctx.grid) * as_blocks(matrix, ctx.grid)).sum((1, 3))  # (R, C)
        return grad_matrix, grad_blocks, None
