"""Who looks on while a pipeline works, and the lines that it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sapp_cli.layers import Layer
from sapp_cli.report.wording import metric_text, percent
from sapp_cli.training.loop import StepRecord


class Watcher(Protocol):
    """Whoever looks on: the terminal, a test, nobody."""

    def say(self, text: str) -> None:
        """One line of what is going on."""

    def detail(self, text: str) -> None:
        """One line for those who want to know everything."""

    def step(self, record: StepRecord) -> None:
        """A finished step."""


class Silence:
    """The watcher of a process that is not the main one."""

    def say(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None: ...


class Notes:
    """The watcher of a verb that shows something else: warnings and notes alone, to a function that prints a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def detail(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None: ...


def describe_metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {metric_text(value)}" for name, value in metrics.items())


def describe_layers(layers: list[Layer]) -> str:
    pruned = [layer for layer in layers if layer.pruned]
    prunable = [layer for layer in layers if layer.prunable]
    share = sum(layer.parameters for layer in pruned) / max(1, sum(layer.parameters for layer in prunable))
    return f"{len(pruned)} of {len(prunable)} prunable layers are pruned, {percent(share)} of their weights"
