"""The tables of `sapp bench`, one for each kind of input, for terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sapp_cli.report.folding import folded_name
from sapp_cli.report.wording import by, counted, cut_in_the_middle, percent, printable, rate_text, size_text, time_text

if TYPE_CHECKING:
    from rich.console import Console

    from sapp_cli.runtime.bench_results import BenchResult, LayerResult, ModelResult, Pair

COLUMNS = ("weight", "block", "kept", "rows", "dense", "±", "block-sparse", "±", "speed-up", "way")
LEAST_NAME = 20  # characters; narrower terminals lose columns instead
DROPPED_FIRST = (6, 8, 2, 4, 10, 3, 1)
"""Positions, the name being 0: spreads, block, rows, way, share kept, weight."""
GAP = 2
MOST_REASONS = 3


def print_result(console: Console, result: BenchResult) -> None:
    """What was measured on what, then a table for each kind of input, then memory and files."""
    console.print(Text(f"{result.model}; {counted(result.replaced, 'layer')} block-sparse"))
    console.print(Text(result.machine.text))
    precision = "bf16" if result.settings.bf16 else "fp32"
    console.print(Text(f"{precision}, {result.inputs}; medians ± half the interquartile range"))
    if result.settings.random_mask is not None:
        console.print("blocks left out at random: an estimate of speed; the outputs mean nothing")
    for line in _kept_dense(result):
        console.print(Text(line))
    for model in result.models:
        case = model.batch_size, model.sequence_length
        layers = [layer for layer in result.layers if (layer.batch_size, layer.sequence_length) == case]
        console.print()
        console.print(_table(model, layers, console.width))
        console.print(Text(_outcome(model)))
    console.print()
    memory, files = result.weight_bytes, result.file_bytes
    console.print(
        f"weights in memory: {size_text(memory['dense'])} dense, {size_text(memory['block_sparse'])} block-sparse"
    )
    beside = f", {size_text(files['block_sparse'])} block-sparse" if "block_sparse" in files else ""
    console.print(f"weights on disk: {size_text(files['given'])} as given{beside}")


def inputs_text(model: ModelResult) -> str:
    """As in "batch 8, 128 tokens"."""
    tokens = f", {model.sequence_length:,} tokens" if model.sequence_length else ""
    return f"batch {model.batch_size}{tokens}"


def _table(model: ModelResult, layers: Sequence[LayerResult], width: int) -> Table:
    """The layers, each standing for so many that are alike (×12), then the whole model."""
    heads = (inputs_text(model), *COLUMNS)
    rows = [(printable(folded_name(layer.names)), *_cells(layer)) for layer in layers]
    alike = [f" ×{len(layer.names)}" if len(layer.names) > 1 else "" for layer in layers]
    total = ("whole model", "", "", "", "", *_times(model.times, 2), "")
    every = [heads, *rows, total]
    widths = [max(len(row[column]) for row in every) for column in range(len(heads))]
    widths[0] += max(map(len, alike), default=0)
    shown = list(range(len(heads)))
    for column in DROPPED_FIRST:
        if width - sum(widths[place] + GAP for place in shown[1:]) >= min(LEAST_NAME, widths[0]):
            break
        shown.remove(column)
    room = max(LEAST_NAME, width - sum(widths[place] + GAP for place in shown[1:]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(heads[column], justify="right" if column else "left", no_wrap=True)
    for row, more in zip((*rows, total), (*alike, ""), strict=True):
        name = cut_in_the_middle(row[0], room - len(more)) + more
        table.add_row(Text(name), *(Text(row[column]) for column in shown[1:]), style="bold" if row is total else None)
    return table


def _cells(layer: LayerResult) -> tuple[str, ...]:
    kept = percent(layer.kept_blocks / layer.blocks)
    return (by(layer.matrix), by(layer.block), kept, f"{layer.rows:,}", *_times(layer.times, 1), layer.way)


def _times(times: Pair, digits: int) -> tuple[str, ...]:
    dense, sparse = times.dense, times.sparse
    spreads = [f"± {time_text(timing.spread / 2)}" for timing in (dense, sparse)]
    return (
        time_text(dense.median),
        spreads[0],
        time_text(sparse.median),
        spreads[1],
        f"{times.speedup:.{digits}f}×",
    )


def _outcome(model: ModelResult) -> str:
    dense, sparse = (model.batch_size / timing.median for timing in (model.times.dense, model.times.sparse))
    text = f"inputs a second: {rate_text(dense)} → {rate_text(sparse)}; "
    text += f"outputs differ by {model.difference:.0e} ≤ {model.tolerance:.0e}"
    formats = model.memory_formats
    if set(formats.values()) != {"contiguous"}:
        text += f"\nin memory: {formats['dense']} dense, {formats['block_sparse']} block-sparse"
    return text


def _kept_dense(result: BenchResult) -> Iterator[str]:
    """Pruned layers that stay dense, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in result.kept_dense.items():
        reasons.setdefault(why, []).append(name)
    for why, names in list(reasons.items())[:MOST_REASONS]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"dense all the same: {printable(names[0])}{more}: {why}"
    if len(reasons) > MOST_REASONS:
        yield f"and {counted(len(reasons) - MOST_REASONS, 'reason')} more, in --json"
