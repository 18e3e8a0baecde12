"""The product as an operator of torch: for `torch.compile` and `torch.export`, which cannot look into it, for gradients of x,
and for `torch.func.vmap`.

A graph holds no modules, so the operator takes the tensors of the weight, and finds by them what was prepared of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.products import Products
from sapp_cli.runtime.weight_state import MAPPED, state_of

_TAGS: dict[str, Any] = {}
if hasattr(torch.Tag, "cudagraph_unsafe"):  # since torch 2.8
    # A layer's first batch measures, and what it prepares then would lie in memory that belongs to the compiler's graphs.
    _TAGS["tags"] = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("sapp::block_sparse_linear", mutates_args=(), **_TAGS)
def block_sparse_linear(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int, way: str | None
) -> Tensor:
    """Of x (…, in), values (K, br, bc), crow (R + 1,), col (K,), bias (out,): (…, out). `way`: see `BlockSparseLinear`."""
    return _products(values, crow, col, bias, (out_features, x.shape[-1]), way, x.dtype)(x.detach())


@block_sparse_linear.register_fake
def _(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, out_features: int, way: str | None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("sapp::block_sparse_linear_backward", mutates_args=(), **_TAGS)
def input_gradient(
    gradient: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, in_features: int, way: str | None
) -> Tensor:
    """Of y (…, out) -> of x (…, in); bias and way are those of the forward pass, whose preparations serve here as well."""
    flat = gradient.reshape(-1, gradient.shape[-1])
    products = _products(values, crow, col, bias, (gradient.shape[-1], in_features), way, gradient.dtype)
    return products.plain.input_gradient(flat).view(*gradient.shape[:-1], in_features)


@input_gradient.register_fake
def _(
    gradient: Tensor, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, in_features: int, way: str | None
) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], in_features)


def _products(
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    matrix: tuple[int, int],
    way: str | None,
    dtype: torch.dtype,
) -> Products:
    grid = BlockGrid(matrix, (values.shape[1], values.shape[2]))
    return state_of(values, crow, col, bias, grid, way).products_for(dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *tensors, _, ctx.way = inputs
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return input_gradient(gradient, *ctx.saved_tensors, ctx.in_features, ctx.way), *(None,) * 6


block_sparse_linear.register_autograd(_backward, setup_context=_remember)


class _WithGradient(torch.autograd.Function):
    """The same product outside graphs, where calling an operator takes longer than a small layer computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: Products, weight: tuple[Tensor, ...]) -> Tensor:
        ctx.products = products
        ctx.save_for_backward(*weight)  # so that torch sees if they change before the backward pass
        return products(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        assert ctx.saved_tensors, "asked for, they are compared with what they were"
        flat = gradient.reshape(-1, gradient.shape[-1])
        found = ctx.products.plain.input_gradient(flat)
        return found.view(*gradient.shape[:-1], found.shape[-1]), None, None


def with_input_gradient(x: Tensor, products: Products, weight: tuple[Tensor, ...]) -> Tensor:
    """Of x (…, in): (…, out), with the gradient of x. `weight`: values, crow and col that the products were made of."""
    y: Tensor = _WithGradient.apply(x, products, weight)  # type: ignore[no-untyped-call]
    return y


def _fold(operator: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """The rule of `torch.func.vmap`: a mapped dimension of x is one of its leading ones."""

    def mapped(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        only_x_is_mapped(in_dims)
        return operator(x.movedim(in_dims[0] or 0, 0), *rest), 0

    return mapped


def only_x_is_mapped(in_dims: tuple[int | None, ...]) -> None:
    """Raise NotImplementedError where `torch.func.vmap` maps over weights, as it does for an ensemble of models."""
    if in_dims[0] is None or any(isinstance(dim, int) for dim in in_dims[1:]):
        raise NotImplementedError(MAPPED)


block_sparse_linear.register_vmap(_fold(block_sparse_linear))
input_gradient.register_vmap(_fold(input_gradient))
