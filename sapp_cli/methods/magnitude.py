"""Block magnitude pruning: keep the blocks with the largest Frobenius norm once, then fine-tune sparse (paper §4.1)."""

from __future__ import annotations

from sapp_cli.core.schedule import Span, Timetable, one_shot_spans
from sapp_cli.methods.method import Method


class Magnitude(Method):
    """One selection by ‖W_b‖_F; no settings."""

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        return one_shot_spans(timetable)
