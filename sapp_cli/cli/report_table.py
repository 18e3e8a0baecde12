"""The table of layers in the terminal, as `report` and `plan` show it, and the comparison of two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from sapp_cli.report.comparison import Comparison
from sapp_cli.report.folding import fold, folded_name
from sapp_cli.report.sparsity import LayerSparsity, SparsityReport
from sapp_cli.report.texts import comparison_cells, layer_cells, targeted_text, work_cells
from sapp_cli.report.wording import count_text, cut_in_the_middle, percent, printable, size_text

COLUMNS = ("shape", "block", "kept / blocks", "sparsity", "target", "dense", "sparse")
WORK_COLUMNS = ("mult-adds", "share")  # where the model was seen at work
LEAST_NAME = 40  # characters of the names in a comparison
LEAST_LINE = 32  # the same of layers, whose names are broken rather than cut; narrower terminals lose columns instead
LEAST_PART = 16  # of a broken name, in any terminal
DROPPED_FIRST = ("share", "target", "mult-adds")
DROPPED_LAST = {"plan": ("kept / blocks", "dense", "block", "shape"), "report": ("dense", "block", "shape", "sparse")}
"""A plan's blocks follow from its target; those of a report are what it is about."""
GAP = 2
TOTALS = 3  # rows at the end


def layer_table(report: SparsityReport, every_layer: bool, width: int, verb: str = "plan") -> Table:
    """The layers with their reasons, those that are alike in one row unless `every_layer`; totals at the end.

    Names stay whole. In narrow terminals they are broken between their parts, reasons stand below them, and columns go.
    """
    columns = _columns(report)
    by_name = {layer.name: layer for layer in report.layers}
    shown_of = {layer.name: (*_layer_cells(layer, report), layer.reason) for layer in report.layers}
    groups = [(name,) for name in by_name] if every_layer else fold(shown_of.items())
    rows = [
        (printable(folded_name(names)) + (f" ×{len(names)}" if len(names) > 1 else ""), *shown_of[names[0]][:-1])
        for names in groups
    ]
    reasons = [printable(by_name[names[0]].reason) for names in groups]
    totals = _totals(report)
    widths = _widths([("layer", *columns), *rows, *totals])
    beside = any(reasons) and sum(widths) + GAP * len(widths) + max(map(len, reasons)) <= width
    order = [(column, widths[0]) for column in DROPPED_FIRST]
    order += [(column, widths[0] if column == "kept / blocks" else LEAST_LINE) for column in DROPPED_LAST[verb]]
    shown = [0, *_fitting(widths, columns, width, order)]
    room = max(LEAST_PART, width - sum(widths[column] + GAP for column in shown[1:]))
    table = _empty_table(columns, shown)
    if beside:
        table.add_column("why", no_wrap=True)
    for names, row, reason in zip(groups, rows, reasons, strict=True):
        pruned = by_name[names[0]].pruned
        below = [] if beside or not reason or (pruned and reason == "pruned") else _broken(reason, " ", room - GAP)
        name = "\n".join([*_broken(row[0], ".", room), *(" " * GAP + line for line in below)])
        cells = [Text(row[column]) for column in shown[1:]]
        table.add_row(Text(name), *cells, *([Text(reason)] if beside else []), style=None if pruned else "dim")
    table.add_section()
    for row in totals:
        table.add_row(Text("\n".join(_broken(row[0], " ", room))), *_cells(row, shown[1:], room), style="bold")
    return table


def _columns(report: SparsityReport) -> tuple[str, ...]:
    return (*COLUMNS, *WORK_COLUMNS) if report.has_work else COLUMNS


def _layer_cells(layer: LayerSparsity, report: SparsityReport) -> tuple[str, ...]:
    """What the columns show of a layer."""
    return (*layer_cells(layer), *(work_cells(layer, report) if report.has_work else ()))


def _totals(report: SparsityReport) -> list[tuple[str, ...]]:
    """The last rows, each with its name."""
    model = report.model
    work = "–" if model.kept_multiply_adds is None else count_text(model.kept_multiply_adds)
    kept = (work, "") if report.has_work else ()
    nothing = ("",) * len(kept)
    layers = "pruned layers" if len(report.pruned) == len(report.targeted) else targeted_text(report)
    requested = "" if report.requested_sparsity is None else percent(report.requested_sparsity)
    sizes = size_text(model.bytes_dense), size_text(model.bytes_sparse)
    return [
        (*_total(f"{layers}, blocks", report.pruned_block_sparsity, requested, "", ""), *nothing),
        (*_total("all prunable weights", model.prunable_sparsity, "", "", ""), *nothing),
        (*_total("whole model", model.sparsity, "", *sizes), *kept),
    ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _empty_table(columns: Sequence[str], shown: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    for column in shown[1:]:
        table.add_column(columns[column - 1], justify="right", no_wrap=True)
    return table


def _broken(text: str, after: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, broken after a separator, or anywhere if there is none."""
    lines: list[str] = []
    line = ""
    for part in re.split(f"(?<={re.escape(after)})", text):
        rest = part
        if line and len(line) + len(rest.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        while len(rest) > width:
            lines.append(rest[:width])
            rest = rest[width:]
        line += rest
    return [*lines, line] if line else lines


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


def _fitting(
    widths: Sequence[int], columns: Sequence[str], width: int, dropped_first: Iterable[tuple[str, int]]
) -> list[int]:
    """The columns that leave room for names. `dropped_first`: columns, each with the room for names that it must leave."""
    shown = list(range(1, len(widths)))
    for name, least in dropped_first:
        room = width - sum(widths[column] + GAP for column in shown)
        if name in columns and room < min(least, widths[0]):
            shown.remove(columns.index(name) + 1)
    return shown


def _cells(row: Sequence[str], shown: Iterable[int], room: int) -> list[Text]:
    """The cells as plain text: a bracket in a name is no markup."""
    return [Text(cut_in_the_middle(row[column], room) if column == 0 else row[column]) for column in shown]
