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

    def scores(self, theta: Tensor, state: BlockState) -> Tensor:
        return block_norms(theta, state.grid) * self.size(theta, state)  # ‖Ŵ_b‖_F = ‖θ_b‖²

    def weight_gradient(self, gradient: Tensor, theta: Tensor, state: BlockState) -> Tensor:
        # With n = ‖θ_b‖ the chain rule gives dL/dθ_b = n·g + (g·θ_b)·θ_b/n, hence dL/dθ_b·θ_b = 2n·(g·θ_b); solved for g.
        norms = block_norms(theta, state.grid)
        inverse = norms.reciprocal().masked_fill(norms == 0, 0.0)
        along = (as_blocks(gradient.float(), state.grid) * as_blocks(theta.float(), state.grid)).sum((1, 3))  # (R, C)
        radial = scale_blocks(theta.float(), along * inverse**3 / 2, state.grid)
        return scale_blocks(gradient.float(), inverse, state.grid) - radial
