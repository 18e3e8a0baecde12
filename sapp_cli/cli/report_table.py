"""The table of layers in the terminal, as `report` and `plan` show it, and the comparison of two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from sapp_cli.report.comparison import Comparison
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.texts import comparison_cells, layer_cells
from sapp_cli.report.wording import cut_in_the_middle, percent, printable, size_text

COLUMNS = ("shape", "block", "kept / blocks", "sparsity", "target", "dense", "sparse")
LEAST_NAME = 40  # characters; narrower terminals lose columns instead
DROPPED_FIRST = ("dense", "block", "shape", "sparse", "target")
GAP = 2


def layer_table(report: SparsityReport, reasons: bool, width: int) -> Table:
    """One row a layer, totals at the end, for a terminal of `width` characters: names are cut to fit, then columns go."""
    model = report.model
    rows = [(printable(layer.name), *layer_cells(layer)) for layer in report.layers]
    totals = [
        _total("pruned layers, blocks", report.pruned_block_sparsity, "", ""),
        _total("all prunable weights", model.prunable_sparsity, "", ""),
        _total("whole model", model.sparsity, size_text(model.bytes_dense), size_text(model.bytes_sparse)),
    ]
    every = [("layer", *COLUMNS), *rows, *totals]
    widths = [max(len(row[column]) for row in every) for column in range(len(COLUMNS) + 1)]
    shown = [0, *_fitting(widths, width)]
    room = max(LEAST_NAME, width - sum(widths[column] + GAP for column in shown[1:]))

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    for column in shown[1:]:
        table.add_column(COLUMNS[column - 1], justify="right", no_wrap=True)
    if reasons:
        table.add_column("why", overflow="fold")
    for layer, row in zip(report.layers, rows, strict=True):
        why = [Text(printable(layer.reason))] if reasons else []
        table.add_row(*_cells(row, shown, room), *why, style=None if layer.pruned else "dim")
    table.add_section()
    for row in totals:
        table.add_row(*_cells(row, shown, room), style="bold")
    return table


def comparison_table(comparison: Comparison, width: int) -> Table:
    """One row a layer that both have."""
    rows = [(printable(layer.name), *comparison_cells(layer)) for layer in comparison.layers]
    heads = ("layer", "kept in both", "only here", "only there", "change")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    room = max(LEAST_NAME, width - sum(widths[1:]) - GAP * len(widths[1:]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, head in enumerate(heads):
        table.add_column(head, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, range(len(heads)), room))
    return table


def _total(name: str, share: float, dense: str, sparse: str) -> tuple[str, ...]:
    return (name, "", "", "", percent(share), "", dense, sparse)


def _fitting(widths: Sequence[int], width: int) -> list[int]:
    """The columns that leave room for names, less important ones dropped first."""
    shown = list(range(1, len(widths)))
    for name in DROPPED_FIRST:
        if width - sum(widths[column] + GAP for column in shown) >= min(LEAST_NAME, widths[0]):
            break
        shown.remove(COLUMNS.index(name) + 1)
    return shown


def _cells(row: Sequence[str], shown: Iterable[int], room: int) -> list[Text]:
    """The cells as plain text: a bracket in a name is no markup."""
    return [Text(cut_in_the_middle(row[column], room) if column == 0 else row[column]) for column in shown]
