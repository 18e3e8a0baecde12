"""Gradual magnitude: the timetable and ramp of sequential attention, scores ‖W_b‖_F, no logits; the honest control."""

from __future__ import annotations

from sapp_cli.core.schedule import Span, Timetable, sequential_spans
from sapp_cli.methods.method import Method


class GradualMagnitude(Method):
    """Blocks of least ‖W_b‖_F leave step by step; no settings."""

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        return sequential_spans(timetable)
