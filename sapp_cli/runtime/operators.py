"""The product as an operator of torch: for `torch.compile`, which cannot look into it, and for gradients of x.

A graph holds no modules, so the operator is given the number of one.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

if TYPE_CHECKING:
    from sapp_cli.runtime.linear import BlockSparseLinear

_NUMBERS = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, BlockSparseLinear] = weakref.WeakValueDictionary()
_TAGS: dict[str, Any] = {}
if hasattr(torch.Tag, "cudagraph_unsafe"):  # since torch 2.8
    # A layer's first batch measures, and what it prepares then would lie in memory that belongs to the compiler's graphs.
    _TAGS["tags"] = (torch.Tag.cudagraph_unsafe,)


def registered(layer: BlockSparseLinear) -> int:
    """A number by which the operators find the layer as long as it lives."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return number


def is_tracing() -> bool:
    """True while TorchScript records what torch computes: all that it does not see, it takes for a constant."""
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]


def has_tangents() -> bool:
    """True within forward-mode differentiation, where torch's own kernels drop the tangent of x and ours cannot take x."""
    return forward_ad._current_level >= 0


def by_context(
    x: Tensor,
    dense: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
) -> Tensor:
    """A layer's forward pass where anything may be on: what torch sees through, an operator of torch, or neither."""
    if has_tangents() or is_tracing():
        return dense(x)
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    if is_compiling() or (x.requires_grad and torch.is_grad_enabled()) or type(x) is not Tensor:
        return operator(x)
    return plain(x)


@torch.library.custom_op("sapp::block_sparse_linear", mutates_args=(), **_TAGS)
def block_sparse_linear(x: Tensor, layer: int, out_features: int) -> Tensor:
    """The layer of this number on x (…, in): (…, out)."""
    return _LAYERS[layer].multiply(x.detach())


@block_sparse_linear.register_fake
def _(x: Tensor, layer: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("sapp::block_sparse_linear_backward", mutates_args=(), **_TAGS)
def input_gradient(gradient: Tensor, layer: int, in_features: int) -> Tensor:
    """Of y (…, out) -> of x (…, in)."""
    found = _LAYERS[layer]
    flat = gradient.reshape(-1, gradient.shape[-1])
    return found.products(gradient.dtype).plain.input_gradient(flat).view(*gradient.shape[:-1], in_features)


@input_gradient.register_fake
def _(gradient: Tensor, layer: int, in_features: int) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], in_features)


def _remember(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    x, ctx.layer, _ = inputs
    ctx.in_features = x.shape[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return input_gradient(gradient, ctx.layer, ctx.in_features), None, None


block_sparse_linear.register_autograd(_backward, setup_context=_remember)
