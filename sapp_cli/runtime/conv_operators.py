"""The convolution as an operator of torch: for `torch.compile` and `torch.export`, which cannot look into it, for gradients
of x, and for `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.conv_geometry import ConvGeometry, channels_last
from sapp_cli.runtime.conv_products import ConvSettings, conv_weight, convolution_of
from sapp_cli.runtime.operators import only_x_is_mapped
from sapp_cli.runtime.plain import dense_weight
from sapp_cli.runtime.weight_state import state_of

Arguments: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], list[int], str]


def arguments_of(geometry: ConvGeometry) -> Arguments:
    """The geometry as an operator can take it: channels, kernel, stride, dilation, padding, padding mode."""
    padding = [pixels for pair in geometry.padding for pixels in pair]
    return geometry.channels, geometry.kernel, geometry.stride, geometry.dilation, padding, geometry.padding_mode


@torch.library.custom_op("sapp::block_sparse_conv", mutates_args=())
def block_sparse_conv(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_channels: int,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    padding_mode: str,
    way: str | None,
) -> Tensor:
    """The convolution of x (N, C, …) with the matrix (C_out, kernel…·C) of values, crow and col: (N, C_out, O…), channels-last
    whatever way was taken. `padding`: pixels before and after, for each axis.
    """
    geometry = _geometry(channels, kernel, stride, dilation, padding, padding_mode)
    state = state_of(values, crow, col, bias, _grid(values, out_channels, geometry), None)
    convolution = convolution_of(state, ConvSettings(geometry, way), x.dtype)
    return channels_last(convolution(x.detach())).movedim(-1, 1)


@block_sparse_conv.register_fake
def _(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    bias: Tensor | None,
    out_channels: int,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    padding_mode: str,
    way: str | None,
) -> Tensor:
    size = _geometry(channels, kernel, stride, dilation, padding, padding_mode).output_size(tuple(x.shape[2:]))
    return x.new_empty(x.shape[0], *size, out_channels).movedim(-1, 1)


@torch.library.custom_op("sapp::block_sparse_conv_backward", mutates_args=())
def input_gradient(
    gradient: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    size: Sequence[int],
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    padding_mode: str,
) -> Tensor:
    """Of y (N, C_out, O…) -> of x (N, C, …), which has this size; by the dense weight. The indices were checked before."""
    geometry = _geometry(channels, kernel, stride, dilation, padding, padding_mode)
    grid = _grid(values, gradient.shape[1], geometry)
    weight = conv_weight(dense_weight(values, crow, col, grid), geometry).to(gradient.dtype)
    zeros, settings = geometry.even_padding, ([0] * geometry.axes, 1, [True, False, False])
    convolved, source = gradient.new_empty(size), None
    if zeros is None:
        source, zeros = geometry.padded_from(tuple(size[2:])), (0,) * geometry.axes
        convolved = gradient.new_empty(*size[:2], *source.shape)
    of_convolved: Tensor = torch.ops.aten.convolution_backward(
        gradient, convolved, weight, None, geometry.stride, zeros, geometry.dilation, False, *settings
    )[0]
    if source is None:
        return of_convolved.contiguous()
    # Each pixel gets what came to all of its copies; those of the border of zeros are dropped.
    of_x = gradient.new_zeros(*size[:2], math.prod(size[2:]) + 1)
    of_x.index_add_(2, source.flatten().to(gradient.device), of_convolved.flatten(2))
    return of_x[..., :-1].contiguous().view(size)


@input_gradient.register_fake
def _(
    gradient: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    size: Sequence[int],
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    padding_mode: str,
) -> Tensor:
    return gradient.new_empty(size)


def _geometry(
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    padding_mode: str,
) -> ConvGeometry:
    pairs = tuple(zip(padding[::2], padding[1::2], strict=True))
    return ConvGeometry(channels, tuple(kernel), tuple(stride), tuple(dilation), pairs, padding_mode)


def _grid(values: Tensor, out_channels: int, geometry: ConvGeometry) -> BlockGrid:
    return BlockGrid((out_channels, geometry.columns), (values.shape[1], values.shape[2]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, crow, col, _, _, *ctx.geometry, _ = inputs
    ctx.size = x.shape
    ctx.save_for_backward(values, crow, col)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return input_gradient(gradient, *ctx.saved_tensors, ctx.size, *ctx.geometry), *(None,) * 12


block_sparse_conv.register_autograd(_backward, setup_context=_remember)


def _folded(x: Tensor, dim: int | None) -> Tensor:
    """The mapped dimension as more images."""
    return x.movedim(dim or 0, 0).flatten(0, 1)


@block_sparse_conv.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    only_x_is_mapped(in_dims)
    return block_sparse_conv(_folded(x, in_dims[0]), *rest).unflatten(0, (info.batch_size, -1)), 0


@input_gradient.register_vmap
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    gradient: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    size: Sequence[int],
    *geometry: Any,
) -> tuple[Tensor, int]:
    only_x_is_mapped(in_dims)
    sizes = (info.batch_size * size[0], *size[1:])
    found = input_gradient(_folded(gradient, in_dims[0]), values, crow, col, sizes, *geometry)
    return found.unflatten(0, (info.batch_size, -1)), 0
