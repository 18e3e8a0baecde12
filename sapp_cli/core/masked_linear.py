"""A Linear with a masked weight that holds no masked weight: it is made for each product, in memory that stays in the cache.

Between forward and backward autograd would keep Ŵ, as large as the weight itself, and the CPU write it to memory and read it
back: at a few hundred rows that, not the arithmetic, is what a mask costs in a step. Scaling the weight again is cheaper.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from sapp_cli.core.masks import is_worth_a_pass, scale_blocks
from sapp_cli.grid import BlockGrid
from sapp_cli.passes.block_passes import BlockPasses, block_passes


class SeenGradient:
    """What the backward pass of one layer has seen of its gradient on the way, kept for who asks before it is changed.

    `number`: what stands for it where only numbers can be handed on.
    """

    _all: ClassVar[weakref.WeakValueDictionary[int, SeenGradient]] = weakref.WeakValueDictionary()
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self._all[self.number] = self
        self._gradient: tuple[int, int] | None = None  # its address and version
        self._squares = self._per_block = torch.empty(0)

    @classmethod
    def numbered(cls, number: int) -> SeenGradient | None:
        """That of this number, while somebody holds it."""
        return cls._all.get(number)

    def note(self, gradient: Tensor, squares: Tensor, per_block: Tensor) -> None:
        """`gradient` dL/dθ (out, in) of θ ⊙ spread(per_block); `squares` (R, C): Σ_b (dL/dŴ ⊙ θ)²."""
        self._gradient = gradient.data_ptr(), gradient._version
        self._squares, self._per_block = squares, per_block.detach()  # whose graph would live on with it

    def forget(self) -> None:
        """Where a step begins: memory that is free by then may become that of another gradient."""
        self._gradient = None

    def squares_of(self, gradient: Tensor) -> Tensor | None:
        """Σ_b (dL/dŴ ⊙ Ŵ)², (R, C), if `gradient` is the one last noted; None once it was clipped, reduced or added to."""
        if type(gradient) is not Tensor or self._gradient != (gradient.data_ptr(), gradient._version):
            return None  # FSDP has spread it over the processes, or it is another one
        return self._squares * self._per_block.square()

    def __reduce__(self) -> tuple[Any, ...]:
        return SeenGradient, ()  # the layer's copy has gradients of its own


def masked_linear(
    x: Tensor,
    weight: Tensor,
    per_block: Tensor,
    bias: Tensor | None,
    grid: BlockGrid,
    seen: SeenGradient | None = None,
) -> Tensor:
    """The Linear of x (…, in) with weight ⊙ spread(per_block), (out, in) and (R, C), and bias (out,): (…, out).

    Differentiable in all four, for what `is_for` says it is for. `seen`: takes notes of the weight's gradient.
    """
    return _MaskedLinear.apply(x, weight, per_block, bias, grid, seen)  # type: ignore[no-any-return, no-untyped-call]


def set_aside(entries: int) -> None:
    """Memory of exactly so many entries for the masked weights of this thread, whatever there was before."""
    _SCRATCH.floats = torch.empty(entries)


def is_for(x: Tensor, weight: Tensor, bias: Tensor | None, grid: BlockGrid) -> bool:
    """True for float32 on the CPU, outside of autocast, and a weight large enough, of whole blocks.

    What is compiled has to know that there are passes (`is_for_weight`) from before.
    """
    return (
        is_worth_a_pass(weight, grid)
        and (torch.compiler.is_compiling() or block_passes(grid) is not None)
        and type(x) in (Tensor, Parameter)
        and x.is_cpu
        and x.dtype is torch.float32
        and (bias is None or bias.dtype is torch.float32)
        and not torch.is_autocast_enabled("cpu")
    )


def is_for_weight(weight: Tensor, grid: BlockGrid) -> bool:
    """True for a weight with which it may be; the rest is a matter of the step."""
    return is_worth_a_pass(weight, grid) and block_passes(grid) is not None


def product(x: Tensor, weight: Tensor, per_block: Tensor, bias: Tensor | None, grid: BlockGrid) -> Tensor:
    """(…, in) -> (…, out), which no gradient is noted for."""
    return F.linear(x, _scaled(weight, per_block, grid), bias)


def input_gradient(dy: Tensor, weight: Tensor, per_block: Tensor, grid: BlockGrid) -> Tensor:
    """Of the result (…, out) -> of x (…, in)."""
    rows = dy.reshape(-1, dy.shape[-1])
    return (rows @ _scaled(weight, per_block, grid)).view(*dy.shape[:-1], weight.shape[1])


def weight_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, per_block: Tensor, grid: BlockGrid, seen: SeenGradient | None
) -> tuple[Tensor, Tensor]:
    """Those of weight (out, in) and of per_block (R, C); `seen` takes notes."""
    dw = dy.reshape(-1, dy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    sums, squares = torch.empty(grid.size), torch.empty(grid.size)
    # Of the masked weight so far; the pass makes it that of the weight, where it lies.
    _passes(grid).gradients(dw, weight, per_block, dw, sums, squares)
    if seen is not None:
        seen.note(dw, squares, per_block)
    return dw, sums


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        per_block: Tensor,
        bias: Tensor | None,
        grid: BlockGrid,
        seen: SeenGradient | None,
    ) -> Tensor:
        ctx.grid, ctx.seen = grid, seen
        ctx.save_for_backward(x, weight, per_block, bias)
        return product(x, weight, per_block, bias, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, per_block, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of gradients
            return *_differentiable(ctx, dy, x, weight, per_block, bias), None, None
        needs_x, needs_weight, needs_blocks, needs_bias, *_ = ctx.needs_input_grad
        dx = input_gradient(dy, weight, per_block, ctx.grid) if needs_x else None
        dw = sums = None
        if needs_weight or needs_blocks:
            dw, sums = weight_gradients(dy, x, weight, per_block, ctx.grid, ctx.seen)
        return (
            dx,
            dw if needs_weight else None,
            sums if needs_blocks else None,
            dy.reshape(-1, dy.shape[-1]).sum(0) if needs_bias else None,
            None,
            None,
        )


def _differentiable(ctx: Any, dy: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """The gradients as operations that autograd knows."""
    x, weight, per_block, bias = inputs
    y = F.linear(x, scale_blocks(weight, per_block, ctx.grid), bias)
    wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[: len(inputs)]]


def _passes(grid: BlockGrid) -> BlockPasses:
    passes = block_passes(grid)
    assert passes is not None, "is_for has said so"
    return passes


def _scaled(weight: Tensor, per_block: Tensor, grid: BlockGrid) -> Tensor:
    """The masked weight, until the next one is asked for in this thread."""
    scaled = _SCRATCH.like(weight)
    _passes(grid).scale(weight, per_block, scaled)
    return scaled


class _Scratch(threading.local):
    """Memory for one masked weight at a time: one for each thread, for all layers."""

    def __init__(self) -> None:
        self.floats = torch.empty(0)

    def like(self, weight: Tensor) -> Tensor:
        if weight.numel() > self.floats.numel():
            self.floats = torch.empty(weight.numel())
        return self.floats[: weight.numel()].view(weight.shape)


_SCRATCH = _Scratch()
