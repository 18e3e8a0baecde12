"""The table of layers in the terminal, as `report` and `plan` show it, and the comparison of two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from sapp_cli.report.comparison import Comparison
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.texts import comparison_cells, layer_cells, targeted_text, work_cells
from sapp_cli.report.wording import count_text, cut_in_the_middle, percent, printable, size_text

COLUMNS = ("shape", "block", "kept / blocks", "sparsity", "target", "dense", "sparse")
WORK_COLUMNS = ("mult-adds", "share")  # where the model was seen at work
LEAST_NAME = 40  # characters; narrower terminals lose columns instead
LEAST_REASON = 22  # longer ones are wrapped where there is no room
DROPPED_FIRST = ("share", "dense", "block", "shape", "sparse", "target", "mult-adds")
GAP = 2


def layer_table(report: SparsityReport, reasons: bool, width: int) -> Table:
    """One row a layer, totals at the end, for a terminal of `width` characters: names are cut to fit, then columns go."""
    model = report.model
    columns: tuple[str, ...] = COLUMNS
    kept: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = [(printable(layer.name), *layer_cells(layer)) for layer in report.layers]
    if report.has_work:
        total = "–" if model.kept_multiply_adds is None else count_text(model.kept_multiply_adds)
        columns, kept = (*COLUMNS, *WORK_COLUMNS), (total, "")
        rows = [(*row, *work_cells(layer, report)) for row, layer in zip(rows, report.layers, strict=True)]
    nothing = ("",) * len(kept)
    layers = "pruned layers" if len(report.pruned) == len(report.targeted) else targeted_text(report)
    requested = "" if report.requested_sparsity is None else percent(report.requested_sparsity)
    totals = [
        (*_total(f"{layers}, blocks", report.pruned_block_sparsity, requested, "", ""), *nothing),
        (*_total("all prunable weights", model.prunable_sparsity, "", "", ""), *nothing),
        (
            *_total("whole model", model.sparsity, "", size_text(model.bytes_dense), size_text(model.bytes_sparse)),
            *kept,
        ),
    ]
    every = [("layer", *columns), *rows, *totals]
    widths = [max(len(row[column]) for row in every) for column in range(len(columns) + 1)]
    longest = max((len(printable(layer.reason)) for layer in report.layers), default=0)
    width -= min(longest, LEAST_REASON) + GAP if reasons else 0
    shown = [0, *_fitting(widths, columns, width)]
    room = max(LEAST_NAME, width - sum(widths[column] + GAP for column in shown[1:]))

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    for column in shown[1:]:
        table.add_column(columns[column - 1], justify="right", no_wrap=True)
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


def _total(name: str, share: float, target: str, dense: str, sparse: str) -> tuple[str, ...]:
    return (name, "", "", "", percent(share), target, dense, sparse)


def _fitting(widths: Sequence[int], columns: Sequence[str], width: int) -> list[int]:
    """The columns that leave room for names, less important ones dropped first."""
    shown = list(range(1, len(widths)))
    for name in (name for name in DROPPED_FIRST if name in columns):
        if width - sum(widths[column] + GAP for column in shown) >= min(LEAST_NAME, widths[0]):
            break
        shown.remove(columns.index(name) + 1)
    return shown


def _cells(row: Sequence[str], shown: Iterable[int], room: int) -> list[Text]:
    """The cells as plain text: a bracket in a name is no markup."""
    return [Text(cut_in_the_middle(row[column], room) if column == 0 else row[column]) for column in shown]
