"""A convolution as a product over its windows, copied together a slab at a time, so that memory stays bounded."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from sapp_cli.runtime.conv_geometry import ConvGeometry, Windows
from sapp_cli.runtime.products import Products

SLAB_BYTES = 4 << 20
"""Of copied windows, for each thread: larger ones are no faster, smaller ones slower."""
LEAST_SLAB_ROWS = 96
"""Windows that are multiplied at a time even where they take more memory than that: two panels of a kernel."""


class OverSlabs:
    """x (N, C, …) -> y (N, C_out, O…), channels-last in memory, by any product of rows."""

    def __init__(self, geometry: ConvGeometry, product: Products, windows: Windows) -> None:
        self._geometry, self._product, self._windows = geometry, product, windows

    def __call__(self, x: Tensor) -> Tensor:
        size = self._geometry.output_size(tuple(x.shape[2:]))
        y = self._rows(x, self._windows, size)  # (N·O…, C_out)
        return y.view(len(x), *size, y.shape[-1]).movedim(-1, 1)

    def _rows(self, x: Tensor, windows: Windows, size: tuple[int, ...]) -> Tensor:
        pixels, width, total = self._geometry.pixels(x), windows.width, len(x) * math.prod(size)
        budget = SLAB_BYTES * torch.get_num_threads() // (width * x.element_size())
        most_rows = max(LEAST_SLAB_ROWS, budget)
        y: Tensor | None = None
        for first, rows, views in windows.slabs(pixels, most_rows):
            slab = _SCRATCH.get(min(most_rows, total) * width, x)[: rows * width].view(rows, width)
            for piece, view in views:
                slab.view(*view.shape[:-1], width)[..., piece.place : piece.place + piece.width].copy_(view)
            found = self._product(slab)
            if rows == total:
                return found
            if y is None:
                y = found.new_empty(total, found.shape[-1])
            y[first : first + rows] = found
        assert y is not None, "no x without pixels comes here"
        return y


class _Scratch(threading.local):
    """Memory for slabs on the CPU, kept between calls: fresh pages cost as much as filling them."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def get(self, count: int, like: Tensor) -> Tensor:
        """(count,) of the dtype and device of `like`, with anything in it."""
        if not like.is_cpu:
            return like.new_empty(count)
        size = count * like.element_size()
        if self._bytes.numel() < size:
            with torch.inference_mode(False):  # else it could not be written to outside of it
                self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(like.dtype)


_SCRATCH = _Scratch()
