"""`masked_linear` as an operator of torch: torch.compile calls it as it is and compiles what is around it.

A compiler's own pass over the weight writes the masked weight to memory and reads it back, as autograd does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sapp_cli.core.masked_linear import SeenGradient, input_gradient, product, weight_gradients
from sapp_cli.grid import BlockGrid

LEAST = 1 << 21
"""Entries of a weight. Smaller ones stay in the cache; a compiler's own passes over them are faster."""


@torch.library.custom_op("sapp::masked_linear", mutates_args=())
def masked_linear_operator(
    x: Tensor, weight: Tensor, per_block: Tensor, bias: Tensor | None, block_rows: int, block_columns: int, seen: int
) -> Tensor:
    """`masked_linear` with blocks (block_rows, block_columns) and the notes of this number."""
    return product(x, weight, per_block, bias, _grid(weight, block_rows, block_columns))


@masked_linear_operator.register_fake
def _(
    x: Tensor, weight: Tensor, per_block: Tensor, bias: Tensor | None, block_rows: int, block_columns: int, seen: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("sapp::masked_linear_input_gradient", mutates_args=())
def _input_gradient(dy: Tensor, weight: Tensor, per_block: Tensor, block_rows: int, block_columns: int) -> Tensor:
    return input_gradient(dy, weight, per_block, _grid(weight, block_rows, block_columns))


@_input_gradient.register_fake
def _(dy: Tensor, weight: Tensor, per_block: Tensor, block_rows: int, block_columns: int) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], weight.shape[1])


@torch.library.custom_op("sapp::masked_linear_weight_gradients", mutates_args=())
def _weight_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, per_block: Tensor, block_rows: int, block_columns: int, seen: int
) -> tuple[Tensor, Tensor]:
    return weight_gradients(
        dy, x, weight, per_block, _grid(weight, block_rows, block_columns), SeenGradient.numbered(seen)
    )


@_weight_gradients.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, per_block: Tensor, block_rows: int, block_columns: int, seen: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(per_block)


def _grid(weight: Tensor, block_rows: int, block_columns: int) -> BlockGrid:
    return BlockGrid((weight.shape[0], weight.shape[1]), (block_rows, block_columns))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, per_block, _, *ctx.block, ctx.seen = inputs
    ctx.save_for_backward(x, weight, per_block)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, per_block = ctx.saved_tensors
    needs_x, needs_weight, needs_blocks, needs_bias, *_ = ctx.needs_input_grad
    dx = _input_gradient(dy, weight, per_block, *ctx.block) if needs_x else None
    dw = sums = None
    if needs_weight or needs_blocks:
        dw, sums = _weight_gradients(dy, x, weight, per_block, *ctx.block, ctx.seen)
    db = dy.reshape(-1, dy.shape[-1]).sum(0) if needs_bias else None
    return dx, dw if needs_weight else None, sums if needs_blocks else None, db, None, None, None


masked_linear_operator.register_autograd(_backward, setup_context=_remember)
