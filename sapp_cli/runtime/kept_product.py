"""y = x Wᵀ + bias with all its gradients, on the kept blocks of W only: what a layer computes while its mask is fixed.

M: rows of x.  R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.
W_b = scale_b · θ_b for every kept block b, in the order of `keep`, row by row.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import Indices, indices
from sapp_cli.codegen.support import kernels_work
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.plain import PlainProduct, weight_gradient

if TYPE_CHECKING:
    from sapp_cli.runtime.kernel import Kernel
    from sapp_cli.runtime.sampled import SampledProduct


class KeptProduct:
    """The product for one mask; the values change from step to step.

    By generated kernels for float32 on the CPU, by plain torch for everything else and where no code can be generated.
    """

    def __init__(self, keep: Tensor, grid: BlockGrid) -> None:
        """`keep` (R, C), bool, with one kept block at least."""
        kept = keep.detach().cpu()
        assert kept.shape == grid.size and kept.any(), f"{int(kept.sum())} kept blocks of {grid.size}"
        self.grid = grid
        self._rows, self._columns = indices(kept.numpy()), indices(kept.t().contiguous().numpy())
        self._kernels: _Kernels | None = None
        self._forbidden = False

    def __call__(self, x: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        """(…, in) -> (…, out) with θ's blocks (K, bc, br), scale (K,) or None for 1, bias (out,); differentiable in all."""
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _Product.apply(flat, values, scale, bias, self)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.grid.matrix[0])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(M, in), weight (K, bc, br) -> (M, out)."""
        kernels = self._kernels_for(x)
        if kernels is not None:
            return kernels.forward(x, weight, bias)
        return PlainProduct(weight.transpose(1, 2), *self._plain_indices, bias, self.grid)(x)

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        """Of y (M, out) -> of x (M, in); weight (K, bc, br)."""
        kernels = self._kernels_for(dy)
        if kernels is not None:
            return kernels.input_gradient(dy, weight)
        return PlainProduct(weight.transpose(1, 2), *self._plain_indices, None, self.grid).input_gradient(dy)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Of y (M, out), for x (M, in) -> of the weight (K, bc, br)."""
        kernels = self._kernels_for(x)
        if kernels is not None:
            return kernels.sampled(x, dy)
        return weight_gradient(x, dy, *self._plain_indices, self.grid)

    def _kernels_for(self, x: Tensor) -> _Kernels | None:
        """The generated kernels; None where there are none for this dtype or device, or code cannot be generated."""
        if self._forbidden or x.dtype is not torch.float32 or not (x.is_cpu and kernels_work()):
            return None
        if self._kernels is None:
            try:
                self._kernels = _Kernels(self._rows, self._columns, self.grid)
            except RuntimeError:  # of LLVM, on a system that forbids new code
                self._forbidden = True
        return self._kernels

    @cached_property
    def _plain_indices(self) -> tuple[Tensor, Tensor]:
        crow, columns = self._rows
        return torch.from_numpy(crow), torch.from_numpy(columns)

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernels, whose addresses hold for this object alone: a copy makes its own."""
        return {**self.__dict__, "_kernels": None}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor | None, product: KeptProduct
    ) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(x, values, scale)
        return product.forward(x, _scaled(values, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        product: KeptProduct = ctx.product
        x, values, scale = ctx.saved_tensors
        dx = dvalues = dscale = dbias = None
        if ctx.needs_input_grad[0]:
            dx = product.input_gradient(dy, _scaled(values, scale))
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dvalues = product.weight_gradient(x, dy)
            if scale is not None:
                if ctx.needs_input_grad[2]:
                    dscale = (dvalues * values).sum((1, 2), dtype=scale.dtype)
                dvalues.mul_(scale.to(dvalues.dtype).view(-1, 1, 1))
        if ctx.needs_input_grad[3]:
            dbias = dy.sum(0)
        return dx, dvalues, dscale, dbias, None


def _scaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """The weight's blocks, (K, bc, br)."""
    values = values.detach()
    return values if scale is None else values * scale.detach().to(values.dtype).view(-1, 1, 1)


class _Kernels:
    """The generated kernels of one mask. They are bound to memory of their own, which the weight is copied to."""

    def __init__(self, rows: tuple[Indices, Indices], columns: tuple[Indices, Indices], grid: BlockGrid) -> None:
        from sapp_cli.runtime.sampled import SampledProduct

        (br, bc), kept = grid.block, len(rows[1])
        turned = BlockGrid((grid.matrix[1], grid.matrix[0]), (bc, br))
        # Column by column; each block's entries row by row, which is the order that a transposed weight is read in.
        size = kept * bc * br
        place = torch.arange(size, dtype=torch.int32 if size < 2**31 else torch.int64).view(kept, bc, br)
        self._turning = place[_order(rows, columns)].transpose(1, 2).flatten()
        self.sampled: SampledProduct = SampledProduct(*rows, grid)
        self._straight = _Bound(rows, grid)
        self._turned = _Bound(columns, turned)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._straight.memory.copy_(weight)
        return self._straight(x, bias)

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        torch.index_select(weight.reshape(-1), 0, self._turning, out=self._turned.memory.view(-1))
        return self._turned(dy, None)


class _Bound:
    """A kernel whose weight is changed in place."""

    def __init__(self, of: tuple[Indices, Indices], grid: BlockGrid) -> None:
        self._indices, self._grid = of, grid
        self.memory = torch.zeros(len(of[1]), grid.block[1], grid.block[0])  # (K, bc, br)
        self._kernel = self._make()
        # Some sizes of blocks are cut or padded for the kernel, which then reads a copy.
        self._shares_memory = self._kernel.weight.values.data_ptr() == self.memory.data_ptr()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self._shares_memory:
            self._kernel = self._make()
        packed = self._kernel.weight
        if bias is None:
            packed.bias.zero_()
        else:
            padded = F.pad(bias.detach(), (0, self._grid.padded[0] - self._grid.matrix[0]))
            height = packed.shape.height
            packed.bias.view(-1, packed.shape.padded_height)[:, :height] = padded.view(-1, height)
        return self._kernel(x)

    def _make(self) -> Kernel:
        from sapp_cli.runtime.kernel import Kernel

        return Kernel(self.memory.transpose(1, 2), *self._indices, None, self._grid)


def _order(rows: tuple[Indices, Indices], columns: tuple[Indices, Indices]) -> Tensor:
    """For each kept block, column by column, its number when they are counted row by row, (K,)."""
    (crow, col), (ccol, row) = (tuple(map(torch.from_numpy, pair)) for pair in (rows, columns))
    shape = len(crow) - 1, len(ccol) - 1
    number = torch.full(shape, -1)
    owner = torch.arange(shape[0]).repeat_interleave(crow.diff())
    number[owner, col.long()] = torch.arange(len(col))
    owner = torch.arange(shape[1]).repeat_interleave(ccol.diff())
    return number[row.long(), owner]
