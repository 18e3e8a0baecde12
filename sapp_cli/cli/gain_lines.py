"""The last lines of `sapp plan`: what the model would gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sapp_cli.cli.tables import print_layers
from sapp_cli.report.wording import by, counted, percent, printable, size_text, time_text, times_smaller

if TYPE_CHECKING:
    from sapp_cli.gains import Gain, HeaderPlan
    from sapp_cli.planning import Plan
    from sapp_cli.runtime.expected_latency import ExpectedLatency, NotMeasured

NAME = 18  # columns of what stands before a value


def print_plan_gains(console: Console, plan: Plan, sparsity: float) -> None:
    """Of a plan; its sizes are upper limits if training moves blocks between layers of several costs."""
    layers = sum(layer.prunable for layer in plan.report.layers)
    print_gains(console, plan.gains, layers, sparsity, at_most=plan.allocation == "balanced")


def print_header_plan(console: Console, plan: HeaderPlan, sparsity: float, *, every_layer: bool, timed: bool) -> None:
    """Layers and sizes, and what a latency needs."""
    print_layers(console, plan.report, every_layer)
    console.print(
        "\nread from the headers alone, since nothing says how to build this model: matrices count as Linear, weights of "
        "more dimensions as convolutions, and names tell embeddings"
    )
    print_gains(console, plan.gains, sum(layer.prunable for layer in plan.report.layers), sparsity, at_most=True)
    if timed:
        _line(
            console,
            "expected latency",
            "not measured: this needs the model; write a function that returns it, and add\n"
            f"{'':<{NAME}}--set model.factory=file.py:function, or model.factory in a recipe",
        )


def print_gains(console: Console, gains: Sequence[Gain], layers: int, sparsity: float, *, at_most: bool) -> None:
    """Layers, block size and file size; then the size with other blocks. `layers`: weights that could be pruned."""
    own = gains[0]
    limit = "at most " if at_most else ""
    console.print()
    console.print(Text(f"what you would gain, with {percent(sparsity)} of the blocks removed", style="bold"))
    _line(console, "layers pruned", f"{own.layers:,} of {layers:,}, in {by(own.block)} blocks")
    _line(console, "file size", f"{size_text(own.bytes_dense)} dense → {limit}{_size(own)}")
    for gain in gains[1:]:
        _line(console, f"  with {by(gain.block)}", f"{limit}{_size(gain)}; {counted(gain.layers, 'layer')} pruned")


def print_latency(console: Console, found: ExpectedLatency | NotMeasured) -> None:
    """Dense and block-sparse, and on which machine; or why not."""
    from sapp_cli.runtime.expected_latency import NotMeasured

    if isinstance(found, NotMeasured):
        _line(console, "expected latency", f"not measured: {printable(found.reason)}")
        return
    times = f"{time_text(found.dense)} dense → {time_text(found.block_sparse)} block-sparse"
    _line(console, "expected latency", f"{times} ({found.speedup:.1f}× as fast)")
    _line(console, "", f"one example ({printable(found.example)}), blocks left out at random")
    _line(console, "", found.machine.text)


def _line(console: Console, name: str, text: str) -> None:
    console.print(Text(f"{name:<{NAME}}{text}"))


def _size(gain: Gain) -> str:
    smaller = times_smaller(gain.bytes_dense, gain.bytes_sparse)
    return f"{size_text(gain.bytes_sparse)} block-sparse" + (f" ({smaller})" if smaller else "")
