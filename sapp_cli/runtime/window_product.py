"""A convolution by a kernel that copies the windows of x into its panels itself, straight from the pixels.

N: images.  C: channels of x.  P, O: size of the padded x and of the output, along each spatial axis.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.conv_geometry import ConvGeometry, Piece, block_pieces
from sapp_cli.runtime.kernel import Kernel, Plan
from sapp_cli.runtime.products import generated_kernel

MOST_PLANS = 4
"""Sizes of x whose places are remembered: eight bytes for each pixel of y."""


class WindowProduct:
    """x (N, C, …) -> y (N, C_out, O…), channels-last in memory."""

    def __init__(self, geometry: ConvGeometry, kernel: Kernel, pieces: list[Piece]) -> None:
        """A kernel for scattered x; `pieces`: where its block columns are in a window."""
        self._geometry, self._kernel, self._pieces = geometry, kernel, pieces
        self._order = (0, geometry.axes + 1, *range(1, geometry.axes + 1))
        self._plans: dict[tuple[torch.Size, int], Plan] = {}

    @classmethod
    def of(
        cls,
        geometry: ConvGeometry,
        values: Tensor,
        crow: Indices,
        columns: Indices,
        bias: Tensor | None,
        grid: BlockGrid,
    ) -> WindowProduct | None:
        """Of checked indices; None where there is no kernel, or the columns of a block are apart in x: those that span two rows
        of a window, or with dilation two pixels.
        """
        used = np.unique(columns) if len(columns) else np.zeros(1, np.int32)
        pieces = [block_pieces(geometry, grid, int(block)) for block in used]
        if any(len(of_block) > 1 for of_block in pieces):
            return None
        last = min(grid.matrix[1], (int(used[-1]) + 1) * grid.block[1]) - int(used[-1]) * grid.block[1]
        read = BlockGrid((grid.matrix[0], (len(used) - 1) * grid.block[1] + last), grid.block)
        found = np.searchsorted(used, columns).astype(np.int32)
        kernel = generated_kernel(values, crow, found, bias, read, scattered=True)
        return None if kernel is None else cls(geometry, kernel, [piece for (piece,) in pieces])

    @property
    def values(self) -> Tensor:
        """As the kernel reads them."""
        return self._kernel.weight.values

    def __call__(self, x: Tensor) -> Tensor:
        pixels = self._geometry.pixels(x)
        size = pixels.shape, torch.get_num_threads()
        plan = self._plans.get(size)
        if plan is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            plan = self._plans[size] = self._plan(pixels)
        return plan(pixels).permute(self._order)

    def _plan(self, pixels: Tensor) -> Plan:
        """For contiguous pixels (N, P…, C)."""
        geometry, strides = self._geometry, pixels.stride()
        sizes = len(pixels), *geometry.unpadded_output_size(pixels.shape[1:-1])
        steps = strides[0], *(s * stride for s, stride in zip(geometry.stride, strides[1:-1], strict=True))
        rows = torch.zeros(1, dtype=torch.int64)
        for count, step in zip(sizes, steps, strict=True):
            rows = (rows[:, None] + step * torch.arange(count)).flatten()
        columns = torch.tensor([geometry.offset(piece, strides) for piece in self._pieces])
        assert len(rows) == math.prod(sizes), "one row for each pixel of y"
        return self._kernel.for_places(tuple(pixels.shape), rows, columns, sizes)
