"""Block Powerpropagation: Ŵ_b = ‖θ_b‖_F·θ_b, then as magnitude (paper §4.1; Lemma 2.3: the group lasso)."""

from __future__ import annotations

from torch import Tensor

from sapp_cli.core.masks import block_norms, scale_blocks
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

    def scores(self, theta: Tensor, state: BlockState) -> Tensor:
        return block_norms(theta, state.grid).square()  # ‖Ŵ_b‖_F = ‖θ_b‖²
