"""Block Powerpropagation: Ŵ_b = ‖θ_b‖_F·θ_b, then as magnitude (paper §4.1; Lemma 2.3: the group lasso)."""

from __future__ import annotations

import torch
from torch import Tensor

from sapp_cli.core.masks import as_blocks, block_norms, scale_blocks
from sapp_cli.core.schedule import Span, Timetable, one_shot_spans
from sapp_cli.grid import BlockGrid
from sapp_cli.methods.method import BlockState, Method


class Powerprop(Method):
    """Large blocks move more than small ones, so training itself sorts them; no settings."""

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        return one_shot_spans(timetable)

    def encode(self, weight: Tensor, grid: BlockGrid) -> Tensor:
        norms = block_norms(weight, grid)
        # ‖θ_b‖·θ_b = W_b asks for θ_b = W_b/‖W_b‖^½; a zero block stays zero.
        shrink = norms.rsqrt().masked_fill(norms == 0, 0.0)
        return scale_blocks(weight.float(), shrink, grid)

    def scale(self, theta: Tensor, state: BlockState) -> Tensor:
        return block_norms(theta, state.grid)

    def kept_scale(self, blocks: Tensor, state: BlockState) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(blocks.float(), dim=(1, 2))
        return norms

    def size(self, theta: Tensor, state: BlockState) -> Tensor:
        return block_norms(theta, state.grid).square()  # ‖Ŵ_b‖_F = ‖θ_b‖²

    def sensitivity(self, gradient: Tensor, theta: Tensor, state: BlockState) -> Tensor:
        # With n = ‖θ_b‖ and g = dL/dŴ_b the chain rule gives dL/dθ_b = n·g + (g·θ_b)·θ_b/n, hence dL/dθ_b·θ_b = 2n·(g·θ_b),
        # and g ⊙ Ŵ_b = n·g ⊙ θ_b = dL/dθ_b ⊙ θ_b − (dL/dθ_b·θ_b)·θ_b²/(2n²).
        theta = theta.float()
        product = gradient.float() * theta
        squares = theta.square()
        along = as_blocks(product, state.grid).sum((1, 3))  # (R, C)
        norms = as_blocks(squares, state.grid).sum((1, 3))  # n²
        share = (along / (2 * norms)).masked_fill(norms == 0, 0.0)
        return block_norms(product - scale_blocks(squares, share, state.grid), state.grid).square()
