"""The convolution as an operator of torch: for `torch.compile`, which cannot look into it, and for gradients of x."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sapp_cli.runtime.conv_geometry import channels_last

if TYPE_CHECKING:
    from sapp_cli.runtime.conv import BlockSparseConv

_NUMBERS = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, BlockSparseConv] = weakref.WeakValueDictionary()


def registered(layer: BlockSparseConv) -> int:
    """A number by which the operators find the layer as long as it lives."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return number


@torch.library.custom_op("sapp::block_sparse_conv", mutates_args=())
def block_sparse_conv(x: Tensor, layer: int) -> Tensor:
    """The layer of this number on x (N, C, …): (N, C_out, O…), channels-last whatever way was taken."""
    return channels_last(_LAYERS[layer].convolve(x.detach())).movedim(-1, 1)


@block_sparse_conv.register_fake
def _(x: Tensor, layer: int) -> Tensor:
    found = _LAYERS[layer]
    size = found.geometry.output_size(tuple(x.shape[2:]))
    return x.new_empty(len(x), *size, found.out_channels).movedim(-1, 1)


@torch.library.custom_op("sapp::block_sparse_conv_backward", mutates_args=())
def input_gradient(gradient: Tensor, size: Sequence[int], layer: int) -> Tensor:
    """Of y (N, C_out, O…) -> of x (N, C, …), which has this size; by the dense weight."""
    found = _LAYERS[layer]
    geometry, weight = found.geometry, found.weight.to(gradient.dtype)
    padding, settings = geometry.even_padding, ([0] * geometry.axes, 1, [True, False, False])
    convolved, source = gradient.new_empty(size), None
    if padding is None:
        source, padding = geometry.padded_from(tuple(size[2:])), (0,) * geometry.axes
        convolved = gradient.new_empty(*size[:2], *source.shape)
    of_convolved: Tensor = torch.ops.aten.convolution_backward(
        gradient, convolved, weight, None, geometry.stride, padding, geometry.dilation, False, *settings
    )[0]
    if source is None:
        return of_convolved.contiguous()
    # Each pixel gets what came to all of its copies; those of the border of zeros are dropped.
    of_x = gradient.new_zeros(*size[:2], math.prod(size[2:]) + 1)
    of_x.index_add_(2, source.flatten().to(gradient.device), of_convolved.flatten(2))
    return of_x[..., :-1].contiguous().view(size)


@input_gradient.register_fake
def _(gradient: Tensor, size: Sequence[int], layer: int) -> Tensor:
    return gradient.new_empty(size)


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    x, ctx.layer = inputs
    ctx.size = x.shape


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return input_gradient(gradient, ctx.size, ctx.layer), None


block_sparse_conv.register_autograd(_backward, setup_context=_remember)
