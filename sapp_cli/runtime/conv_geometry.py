"""A convolution as a product: which pixels each output needs, as rows of a matrix.

N: images.  C: channels of x.  P, O: size of the padded x and of the output, along each spatial axis.
The weight is the matrix (C_out, kernel…·C), channels fastest; so a row of its counterpart
is one window of x, read pixel by pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.grid import BlockGrid

Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

MOST_GATHERED = 0.5
"""Of the columns. Few long copies are quicker than many short ones, unless these leave out more than this."""


@dataclass(frozen=True)
class ConvGeometry:
    """What a convolution of one group reads where; tuples have one entry for each spatial axis."""

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Pixels before and after."""
    padding_mode: str

    @classmethod
    def of(cls, conv: Conv) -> ConvGeometry:
        if conv.padding == "same":
            total = [step * (side - 1) for side, step in zip(conv.kernel_size, conv.dilation, strict=True)]
            padding = tuple((pixels // 2, pixels - pixels // 2) for pixels in total)
        elif conv.padding == "valid":
            padding = ((0, 0),) * len(conv.kernel_size)
        else:
            padding = tuple((int(pixels), int(pixels)) for pixels in conv.padding)
        return cls(conv.in_channels, conv.kernel_size, conv.stride, conv.dilation, padding, conv.padding_mode)

    @property
    def axes(self) -> int:
        """1, 2 or 3."""
        return len(self.kernel)

    @property
    def columns(self) -> int:
        """Of the weight as a matrix."""
        return math.prod(self.kernel) * self.channels

    @property
    def pointwise(self) -> bool:
        """True if an output needs one pixel only."""
        return set(self.kernel) == {1} and not self.padded

    @property
    def padded(self) -> bool:
        return any(pixels for pair in self.padding for pixels in pair)

    @property
    def even_padding(self) -> tuple[int, ...] | None:
        """Zeros on both sides of each axis, as convolutions themselves can add them; None for any other padding."""
        if self.padded and (self.padding_mode != "zeros" or any(before != after for before, after in self.padding)):
            return None
        return tuple(before for before, _ in self.padding)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """O of the spatial size of x. Raises ValueError where the kernel is larger than the padded x."""
        reach = tuple(step * (side - 1) + 1 for side, step in zip(self.kernel, self.dilation, strict=True))
        found = tuple(
            (pixels + sum(pads) - span) // stride + 1
            for pixels, pads, span, stride in zip(size, self.padding, reach, self.stride, strict=True)
        )
        if min(found) < 1:
            raise ValueError(f"x has {_by(size)} pixels, fewer than the kernel of {_by(reach)} needs")
        return found

    def unpadded_output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """O of the spatial size P of x with its padding."""
        ways = zip(size, self.kernel, self.dilation, self.stride, strict=True)
        return tuple((pixels - step * (side - 1) - 1) // stride + 1 for pixels, side, step, stride in ways)

    def offset(self, piece: Piece, strides: Sequence[int]) -> int:
        """Entries between the first column of a piece and the first pixel of its window, in x (N, P…, C) with these strides."""
        ways = zip(piece.window, self.dilation, strides[1:-1], strict=True)
        return piece.channel + sum(place * dilation * stride for place, dilation, stride in ways)

    def batch(self, x: Tensor) -> Tensor:
        """(N, C, …), also of one image (C, …). Raises ValueError for what is neither."""
        batch = x.unsqueeze(0) if x.dim() == self.axes + 1 else x
        if batch.dim() != self.axes + 2 or batch.shape[1] != self.channels:
            raise ValueError(
                f"x is {tuple(x.shape)}; it must be (images, {self.channels} channels, {self.axes} spatial axes)"
            )
        return batch

    def pad(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C, P…), in memory as it comes."""
        if not self.padded:
            return x
        pads = [pixels for pair in reversed(self.padding) for pixels in pair]
        return F.pad(x, pads, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def padded_from(self, size: tuple[int, ...]) -> Tensor:
        """(P…): the number of the pixel, of x of this size, that each pixel of the padded x is a copy of; one past the last
        of them where it is a zero.
        """
        count = math.prod(size)
        numbers = torch.arange(1, count + 1, dtype=torch.float64).view(1, 1, *size)
        found = self.pad(numbers)[0, 0].long()
        return torch.where(found == 0, count, found - 1)

    def pixels(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, P…, C), contiguous; a view where x is channels-last and not padded."""
        if not self.padded or self.padding_mode != "zeros":
            return channels_last(self.pad(x))
        size = tuple(pixels + sum(pads) for pixels, pads in zip(x.shape[2:], self.padding, strict=True))
        padded = x.new_zeros(len(x), *size, self.channels)
        inside = padded
        for axis, ((before, _), pixels) in enumerate(zip(self.padding, x.shape[2:], strict=True), start=1):
            inside = inside.narrow(axis, before, pixels)
        inside.copy_(x.movedim(1, -1))
        return padded


def channels_last(x: Tensor) -> Tensor:
    """(N, C, …) -> (N, …, C), contiguous; a view where x is laid out like that."""
    return x.movedim(1, -1).contiguous()


@dataclass(frozen=True)
class Piece:
    """Neighbouring columns of the matrix of windows that also lie together in x."""

    place: int
    """First column of it among those that are gathered."""
    width: int
    window: tuple[int, ...]
    """Position in the kernel."""
    channel: int
    """First one; beyond C it is one of the next pixel."""


class Windows:
    """The windows of x as rows, cut down to the columns that a weight reads, a slab of outputs at a time.

    `columns` of the weight's blocks are replaced by those among the columns that are gathered; `width` is their number.
    """

    def __init__(self, geometry: ConvGeometry, grid: BlockGrid, columns: Indices) -> None:
        """Of the weight's grid and its checked block columns (K,)."""
        self._geometry = geometry
        block_columns, bc = grid.size[1], grid.block[1]
        used = np.unique(columns) if len(columns) else np.zeros(1, np.int32)
        if len(used) > MOST_GATHERED * block_columns:
            used = np.arange(block_columns, dtype=np.int32)
        self.columns: Indices = np.searchsorted(used, columns).astype(np.int32)
        ranges = [(int(block) * bc, min((int(block) + 1) * bc, grid.matrix[1])) for block in used]
        self.width = sum(stop - start for start, stop in ranges)
        self._pieces = tuple(_pieces(geometry, ranges))

    def slabs(self, pixels: Tensor, most_rows: int) -> Iterator[tuple[int, int, list[tuple[Piece, Tensor]]]]:
        """(first output, number of outputs, [(piece, view of its columns (outputs…, width))]) until all are done.

        `pixels` (N, P…, C) are those of `ConvGeometry.pixels`. Outputs count as rows of (N, O…).
        """
        geometry = self._geometry
        sizes = len(pixels), *geometry.unpadded_output_size(pixels.shape[1:-1])
        strides = pixels.stride()
        steps = strides[0], *(s * stride for s, stride in zip(geometry.stride, strides[1:-1], strict=True))
        # Cut along the first axis whose single steps fit; the axes before it are gone through one by one.
        inner = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        axis = next((axis for axis, rows in enumerate(inner) if rows <= most_rows), len(sizes) - 1)
        length = max(1, most_rows // inner[axis])
        first = 0
        for outer in itertools.product(*map(range, sizes[:axis])):
            for start in range(0, sizes[axis], length):
                shape = min(length, sizes[axis] - start), *sizes[axis + 1 :]
                origin = pixels.storage_offset() + sum(
                    place * step for place, step in zip((*outer, start), steps[: axis + 1], strict=True)
                )
                views = [
                    (piece, pixels.as_strided((*shape, piece.width), (*steps[axis:], 1), origin + offset))
                    for piece, offset in ((piece, geometry.offset(piece, strides)) for piece in self._pieces)
                ]
                rows = math.prod(shape)
                yield first, rows, views
                first += rows


def block_pieces(geometry: ConvGeometry, grid: BlockGrid, block: int) -> list[Piece]:
    """Of one block column."""
    start = block * grid.block[1]
    return list(_pieces(geometry, [(start, min(start + grid.block[1], grid.matrix[1]))]))


def _pieces(geometry: ConvGeometry, ranges: list[tuple[int, int]]) -> Iterator[Piece]:
    """Ranges of columns, neighbours joined, cut where x goes on somewhere else."""
    joined: list[list[int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    # Without dilation all pixels of a row of the kernel lie together.
    neighbours = geometry.kernel[-1] if geometry.dilation[-1] == 1 else 1
    together = neighbours * geometry.channels
    place = 0
    for start, stop in joined:
        for run in range(start // together, -(-stop // together)):
            begin, end = max(start, run * together), min(stop, (run + 1) * together)
            window = np.unravel_index(run * neighbours, geometry.kernel)
            yield Piece(place, end - begin, tuple(map(int, window)), begin - run * together)
            place += end - begin


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
