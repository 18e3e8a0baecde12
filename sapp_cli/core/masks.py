"""The attention mask, block norms, and spreading one value a block over a weight.

out, in: a weight as a matrix.  R, C: block rows and columns.  br, bc: rows and columns inside one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from sapp_cli.core.workspace import Workspace
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.passes.block_passes import block_passes

SMALL = 1 << 17  # entries: a matrix below stays in the cache, whatever is done to it
WHOLE = 1 << 20  # entries: up to here a second-level cache is missed anyway, and the third holds all of it
PASS = 1 << 18  # entries of a larger one that are worked on together, while they are in the cache


def attention(logits: Tensor) -> Tensor:
    """A = n·softmax(L) over all n blocks of a layer, (R, C), mean 1 (paper §3, Algorithm 1).

    Divided by fl(1/n), which is what softmax gives every block of equal logits, so that L = 0 yields exactly 1: the product
    n·fl(1/n) is not 1 for one n in eight, and a fresh mask must not change a bit of the checkpoint's function.
    """
    even: Tensor | float = 1 / logits.numel()
    if not logits.is_cpu:  # a GPU multiplies by a number's reciprocal
        even = torch.tensor(even, dtype=logits.dtype, device=logits.device)
    return torch.softmax(logits.flatten(), 0).view(logits.shape) / even  # (R, C)


def attention_mask(logits: Tensor, density: float | None, trained: Tensor | None = None) -> Tensor:
    """A clamped to [density, 1/density], density = 1 − the layer's target sparsity; None: no clamp. (R, C)

    The paper (App. C.1) writes the range [n·density, n/density]; with A scaled to mean 1 it is this one. A hard clamp without
    renormalization; blocks are ranked by the unclamped `attention`. `trained`, bool (R, C): the logits that gradients reach,
    None for all.
    """
    if torch.compiler.is_compiling():  # and fused by the compiler
        return _attention_mask(logits, density, trained)
    return _AttentionMask.apply(logits, density, trained)  # type: ignore[no-any-return, no-untyped-call]


def _attention_mask(logits: Tensor, density: float | None, trained: Tensor | None) -> Tensor:
    if trained is not None:
        logits = torch.where(trained, logits, logits.detach())
    mask = attention(logits)
    return mask if density is None else mask.clamp(density, 1 / density)


class _AttentionMask(torch.autograd.Function):
    """Backward in five operations on (R, C); of a dozen nodes of autograd's each costs as much as its arithmetic."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, density: float | None, trained: Tensor | None) -> Tensor:
        scores = attention(logits)
        mask = scores if density is None else scores.clamp(density, 1 / density)
        ctx.density = density
        ctx.save_for_backward(logits, trained, scores, None if density is None else scores == mask)
        return mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, trained, scores, free = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of gradients
            mask = _attention_mask(logits, ctx.density, trained)
            return *torch.autograd.grad(mask, logits, grads, create_graph=True), None, None
        # dL = A ⊙ dA − A · mean(A ⊙ dA), the mean over all n blocks
        weighted = grads[0] * scores
        if free is not None:
            weighted.mul_(free)
        gradient = torch.addcmul(weighted, scores, weighted.mean(), value=-1)
        return gradient if trained is None else gradient.mul_(trained), None, None


def as_matrix(weight: Tensor, layout: MatrixLayout) -> Tensor:
    """The weight as its matrix (out, in); a view where the layout allows it, never the weight itself: the workspace takes a
    tensor that somebody else holds for one in use.
    """
    return weight.permute(layout.axes).reshape(layout.matrix)


def from_matrix(matrix: Tensor, layout: MatrixLayout) -> Tensor:
    """The inverse of `as_matrix`: (out, in) -> the weight's own shape, a view with the strides of the matrix."""
    if layout.moves_no_entry:
        return matrix.reshape(layout.shape)
    return matrix.reshape(layout.permuted_shape).permute(layout.inverse_axes)


def with_strides_of(like: Tensor, weight: Tensor) -> Tensor:
    """The weight with the strides of `like`, a tensor of the same shape: a copy if it has others; differentiable.

    torch picks a convolution by the strides of its weight, and two convolutions round differently.
    """
    strides = like.stride()
    if weight.stride() == strides or 0 in strides:  # no copy can be written into memory that overlaps
        return weight
    return weight.new_empty_strided(weight.shape, strides).copy_(weight)


def as_blocks(matrix: Tensor, grid: BlockGrid) -> Tensor:
    """The matrix as (R, br, C, bc); a view if the grid is not ragged, else a copy padded with zeros."""
    (rows, columns), (br, bc) = grid.size, grid.block
    if grid.ragged:
        padding = (0, grid.padded[1] - grid.matrix[1], 0, grid.padded[0] - grid.matrix[0])
        matrix = F.pad(matrix, padding)
    return matrix.reshape(rows, br, columns, bc)


def gather_blocks(matrix: Tensor, keep: Tensor, grid: BlockGrid) -> Tensor:
    """The kept blocks of the matrix, row by row, each turned: (K, bc, br); ragged ones are filled up with zeros."""
    return as_blocks(matrix, grid).permute(0, 2, 3, 1)[keep].contiguous()


def scatter_blocks(blocks: Tensor, keep: Tensor, grid: BlockGrid) -> Tensor:
    """The inverse of `gather_blocks`: (K, bc, br) -> (out, in), zeros where nothing is kept; differentiable."""
    (rows, columns), (br, bc) = grid.size, grid.block
    whole = blocks.new_zeros(rows, columns, bc, br).index_put((keep,), blocks).permute(0, 3, 1, 2).reshape(grid.padded)
    return whole[: grid.matrix[0], : grid.matrix[1]]


def block_norms(matrix: Tensor, grid: BlockGrid) -> Tensor:
    """‖W_b‖_F of every block in fp32, (R, C); differentiable, with gradient 0 at a zero block."""
    if streams(matrix, grid) and not (torch.is_grad_enabled() and matrix.requires_grad):
        squares = [part.square().sum(1).sum(2) for part in torch.split(as_blocks(matrix, grid), _rows_a_pass(grid))]
        return torch.cat(squares).sqrt()
    norms: Tensor = torch.linalg.vector_norm(as_blocks(matrix.float(), grid), dim=(1, 3))
    return norms


def block_product_squares(first: Tensor, second: Tensor, grid: BlockGrid) -> Tensor:
    """‖(first ⊙ second)_b‖_F² of every block in fp32, (R, C); not differentiable."""
    first, second = first.detach(), second.detach()
    if not (streams(first, grid) and streams(second, grid)):
        return as_blocks(first.float() * second.float(), grid).square().sum((1, 3))
    if (passes := block_passes(grid)) is not None:
        squares = torch.empty(grid.size)
        passes.product_squares(first, second, squares)
        return squares
    parts = (torch.split(as_blocks(matrix, grid), _rows_a_pass(grid)) for matrix in (first, second))
    return torch.cat([(its * other).square_().sum(1).sum(2) for its, other in zip(*parts, strict=True)])


def spread(per_block: Tensor, grid: BlockGrid) -> Tensor:
    """One value a block (R, C) -> the same value at every entry of the block (out, in)."""
    (rows, columns), (br, bc) = grid.size, grid.block
    whole = per_block.view(rows, 1, columns, 1).expand(rows, br, columns, bc).reshape(grid.padded)
    return whole[: grid.matrix[0], : grid.matrix[1]]


def scale_blocks(matrix: Tensor, per_block: Tensor, grid: BlockGrid, workspace: Workspace | None = None) -> Tensor:
    """Matrix ⊙ spread(per_block), (out, in); differentiable in both, saving nothing but its two inputs.

    A large product, and its gradient after it, lie in the memory of `workspace` if there is one.
    """
    if not matrix.is_contiguous() and matrix.t().is_contiguous():
        turned = BlockGrid((grid.matrix[1], grid.matrix[0]), (grid.block[1], grid.block[0]))
        return scale_blocks(matrix.t(), per_block.t(), turned, workspace).t()
    return _ScaleBlocks.apply(matrix, per_block, grid, workspace)  # type: ignore[no-any-return, no-untyped-call]


class _ScaleBlocks(torch.autograd.Function):
    """The product's backward by hand: autograd would keep the spread mask, as large as the weight, for every layer."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, per_block: Tensor, grid: BlockGrid, workspace: Workspace | None) -> Tensor:
        ctx.grid, ctx.workspace = grid, workspace
        ctx.save_for_backward(matrix, per_block)
        return _scale(matrix, per_block, grid, workspace)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        matrix, per_block = ctx.saved_tensors
        again = torch.is_grad_enabled()  # for gradients of gradients
        if all(ctx.needs_input_grad[:2]) and not again and streams(grad, ctx.grid) and streams(matrix, ctx.grid):
            return *_both_gradients(grad, matrix, per_block, ctx.grid, ctx.workspace), None, None
        grad_matrix = grad_blocks = None
        if ctx.needs_input_grad[0]:
            grad_matrix = _scale(grad, per_block, ctx.grid, None if again else ctx.workspace)
        if ctx.needs_input_grad[1]:
            grad_blocks = (as_blocks(grad, ctx.grid) * as_blocks(matrix, ctx.grid)).sum((1, 3))  # (R, C)
        return grad_matrix, grad_blocks, None, None


def _scale(matrix: Tensor, per_block: Tensor, grid: BlockGrid, workspace: Workspace | None = None) -> Tensor:
    if grid.ragged:
        return matrix * spread(per_block, grid)
    (rows, columns), _ = grid.size, grid.block
    scale = per_block.view(rows, 1, columns, 1)
    if workspace is None or not streams(matrix, grid) or per_block.dtype != matrix.dtype:
        return (as_blocks(matrix, grid) * scale).view(grid.matrix)
    product = workspace.like(matrix)
    if (passes := block_passes(grid)) is not None:
        passes.scale(matrix, per_block, product)
    else:
        torch.mul(as_blocks(matrix, grid), scale, out=as_blocks(product, grid))
    return product


def _both_gradients(
    grad: Tensor, matrix: Tensor, per_block: Tensor, grid: BlockGrid, workspace: Workspace | None
) -> tuple[Tensor, Tensor]:
    """Those of the matrix and of the blocks, while `grad` is read from memory once."""
    grad_matrix = (workspace or Workspace()).like(matrix)
    grad_blocks = torch.empty(grid.size, dtype=per_block.dtype)
    if per_block.dtype == torch.float32 and (passes := block_passes(grid)) is not None:
        passes.gradients(grad, matrix, per_block, grad_matrix, grad_blocks, torch.empty(grid.size))
        return grad_matrix, grad_blocks
    (rows, columns), _ = grid.size, grid.block
    whole = (as_blocks(grad, grid), as_blocks(matrix, grid), as_blocks(grad_matrix, grid))
    pieces = [*whole, per_block.view(rows, 1, columns, 1), grad_blocks]
    few_rows = (torch.split(piece, _rows_a_pass(grid)) for piece in pieces)
    for its_grad, its_matrix, out, scale, its_blocks in zip(*few_rows, strict=True):
        product = torch.mul(its_grad, its_matrix, out=out)  # where the gradient will lie: that much less in the cache
        torch.sum(product.sum(1), 2, out=its_blocks)  # rows first: faster by half than both at once
        torch.mul(its_grad, scale, out=out)
    return grad_matrix, grad_blocks


def streams(matrix: Tensor, grid: BlockGrid) -> bool:
    """True where a pass of ours is worth it; what is compiled gets passes of its own."""
    return not torch.compiler.is_compiling() and is_worth_a_pass(matrix, grid)


def is_worth_a_pass(matrix: Tensor, grid: BlockGrid) -> bool:
    """True for a matrix large enough for the time to go into moving it between the CPU and its memory."""
    return (
        type(matrix) in (Tensor, Parameter)
        and matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and matrix.numel() >= SMALL
        and matrix.is_contiguous()
        and not grid.ragged
    )


def _rows_a_pass(grid: BlockGrid) -> int:
    """Block rows."""
    if grid.matrix[0] * grid.matrix[1] <= WHOLE:
        return grid.size[0]
    return max(1, PASS // (grid.block[0] * grid.matrix[1]))
