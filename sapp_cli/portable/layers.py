"""Block-sparse layers in operators that every runtime has: gather the block columns of x, then one batched product.

R, C: block rows and columns.  br, bc: rows and columns of a block.  M: rows of x.  k: blocks of each block row of a group.

    x (M, in) → (M, C, bc) → gather (M, R·k, bc) → (M, R, k·bc) → (R, M, k·bc) @ (R, k·bc, br) → (R, M, br) → (M, out)

As ONNX this is Reshape, Gather, Transpose and MatMul: no operator of our own, and no code of ours where it runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapp_cli.grid import BlockGrid
from sapp_cli.portable.grouping import RowGroup, group_rows
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.conv_geometry import ConvGeometry
from sapp_cli.runtime.conv_products import conv_weight
from sapp_cli.runtime.linear import BlockSparseLinear


class PortableLinear(nn.Module):
    """y = x Wᵀ + bias for x (…, in) -> (…, out), W block-sparse, in standard operators only."""

    order: Tensor | None  # (R,): where each block row lies among the rows of all groups; None if in this order already
    bias: Tensor | None  # (out,)

    def __init__(self, grid: BlockGrid, products: Sequence[GatheredProduct], order: Tensor | None, bias: Tensor | None):
        super().__init__()
        self.grid = grid
        self.products = nn.ModuleList(products)
        self.register_buffer("order", order)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: BlockSparseLinear, groups: int) -> PortableLinear:
        """The same product, its block rows in at most so many groups."""
        crow = layer.crow.tolist()
        found = group_rows([end - start for start, end in itertools.pairwise(crow)], groups)
        rows = torch.tensor([row for group in found for row in group.rows])
        order = rows.argsort()
        in_order = bool((order == torch.arange(len(order))).all())
        products = [GatheredProduct.of(layer, group) for group in found]
        return cls(layer.grid, products, None if in_order else order, layer.bias)

    @property
    def blocks(self) -> int:
        """Multiplied ones, those of zeros among them."""
        return sum(len(part.weight) * part.width for part in self.parts)

    @property
    def parts(self) -> list[GatheredProduct]:
        """One for each group of block rows."""
        return [product for product in self.products if isinstance(product, GatheredProduct)]

    @property
    def weight(self) -> Tensor:
        """The dense weight (out, in), made when it is asked for: models look at a layer's weight for its dtype."""
        (rows, columns), (tall, wide), (out, width) = self.grid.size, self.grid.block, self.grid.matrix
        dense = torch.cat([part.dense(columns) for part in self.parts])
        if self.order is not None:
            dense = dense.index_select(0, self.order)
        return dense.permute(0, 3, 1, 2).reshape(rows * tall, columns * wide)[:out, :width]

    def forward(self, x: Tensor) -> Tensor:
        (out, columns), (_, wide) = self.grid.matrix, self.grid.block
        if missing := -columns % wide:
            x = F.pad(x, (0, missing))
        blocks = x.reshape(-1, self.grid.size[1], wide)
        parts = [product(blocks) for product in self.products]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.order is not None:
            y = y.index_select(0, self.order)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
        if y.shape[-1] != out:
            y = y[..., :out]
        return y if self.bias is None else y + self.bias


class GatheredProduct(nn.Module):
    """x (M, C, bc) -> (R, M, br) for R block rows of k blocks each."""

    columns: Tensor  # int64 (R·k,): block columns of x
    weight: Tensor  # (R, k·bc, br)

    def __init__(self, columns: Tensor, weight: Tensor, width: int) -> None:
        super().__init__()
        self.width = width  # k
        self.register_buffer("columns", columns)
        self.register_buffer("weight", weight)

    @classmethod
    def of(cls, layer: BlockSparseLinear, group: RowGroup) -> GatheredProduct:
        """Of these block rows; what fills a row up are zeros times its own first block, or block column 0."""
        crow, (tall, wide) = layer.crow.tolist(), layer.block
        columns = torch.zeros(len(group.rows), group.width, dtype=torch.int64)
        weight = layer.values.new_zeros(len(group.rows), group.width, wide, tall)
        for place, row in enumerate(group.rows):
            start, end = crow[row], crow[row + 1]
            if start < end:
                columns[place] = layer.col[start]
            columns[place, : end - start] = layer.col[start:end]
            weight[place, : end - start] = layer.values[start:end].transpose(1, 2)
        return cls(columns.flatten(), weight.flatten(1, 2), group.width)

    def dense(self, columns: int) -> Tensor:
        """(R, C, bc, br); blocks of zeros that fill a row up add nothing."""
        rows, deep, tall = self.weight.shape
        blocks = self.weight.reshape(rows * self.width, deep // self.width, tall)
        places = torch.arange(rows).repeat_interleave(self.width) * columns + self.columns
        flat = self.weight.new_zeros(rows * columns, *blocks.shape[1:]).index_add(0, places, blocks)
        return flat.reshape(rows, columns, *blocks.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        rows, deep, _ = self.weight.shape
        return x.index_select(1, self.columns).reshape(-1, rows, deep).transpose(0, 1) @ self.weight


class PortableConv(nn.Module):
    """A convolution of one group as that product over its windows: x (N, C_in, …) -> (N, C_out, …)."""

    def __init__(self, geometry: ConvGeometry, product: PortableLinear) -> None:
        super().__init__()
        self.geometry = geometry
        self.product = product

    @classmethod
    def of(cls, layer: BlockSparseConv, groups: int) -> PortableConv:
        """The same convolution, its block rows in at most so many groups."""
        return cls(layer.geometry, PortableLinear.of(layer.matrix, groups))

    @property
    def blocks(self) -> int:
        """Multiplied ones for each output pixel, those of zeros among them."""
        return self.product.blocks

    @property
    def weight(self) -> Tensor:
        """The dense weight (C_out, C_in, kernel…), made when it is asked for."""
        return conv_weight(self.product.weight, self.geometry)

    def forward(self, x: Tensor) -> Tensor:
        geometry = self.geometry
        padded = geometry.pad(x).movedim(1, -1)
        sizes = geometry.unpadded_output_size(padded.shape[1:-1])
        windows = [self._pixels(padded, place, sizes) for place in itertools.product(*map(range, geometry.kernel))]
        y: Tensor = self.product(windows[0] if len(windows) == 1 else torch.cat(windows, -1))
        return y.movedim(-1, 1)

    def _pixels(self, x: Tensor, place: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """Of x (N, P…, C) those that the place in the kernel reads for each output: (N, O…, C)."""
        geometry = self.geometry
        for axis, (offset, size) in enumerate(zip(place, sizes, strict=True)):
            start, step = offset * geometry.dilation[axis], geometry.stride[axis]
            index = [slice(None)] * x.dim()
            index[axis + 1] = slice(start, start + (size - 1) * step + 1, step)
            x = x[tuple(index)]
        return x


def portable(layer: BlockSparseLinear | BlockSparseConv, groups: int) -> PortableLinear | PortableConv:
    """A layer of `sapp.load` in standard operators."""
    return PortableConv.of(layer, groups) if isinstance(layer, BlockSparseConv) else PortableLinear.of(layer, groups)
