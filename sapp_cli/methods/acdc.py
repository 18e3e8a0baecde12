"""ACDC: dense and sparse phases in turn, the support chosen by ‖W_b‖_F as each sparse phase begins (paper §4.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sapp_cli.core.masks import scale_blocks
from sapp_cli.core.schedule import Moment, Phase, Span, Timetable, alternating_spans
from sapp_cli.methods.method import BlockState, Method


class Acdc(Method):
    """Alternating compressed and decompressed phases."""

    pruned_weights: Literal["drop", "mask"] = "drop"
    """What becomes of a pruned weight: `drop` starts it from zero in the next dense phase (ImageNet), `mask` returns it
    as it was (the paper's Criteo runs)."""

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        return alternating_spans(timetable)

    @torch.no_grad()
    def begin(self, moment: Moment, theta: Tensor, state: BlockState, before: Tensor) -> None:
        if moment.phase is Phase.SPARSE and self.pruned_weights == "drop":
            theta.copy_(scale_blocks(theta, state.keep.to(theta.dtype), state.grid))
