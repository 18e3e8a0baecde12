"""The plots of a comparison: the metric against sparsity, and the front of what is left to store and to compute."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from sapp_cli.comparing.table import Row, Table, by_text
from sapp_cli.report.figures import keep_within_shares
from sapp_cli.report.wording import count_text, size_text

# Okabe and Ito's colours, told apart by the colour-blind, and a shape for each besides.
INK, RULE = "#333333", "#cccccc"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
SHAPES = "osD^vPX"
WIDTH, HEIGHT = 9.6, 3.6  # inches, of a plot and of a row of panels in it
MOST_COLUMNS = 3
PLOTS = ("sparsity.png", "sparsity.svg", "cost.png", "cost.svg")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sapp",  # the same table twice is the same file
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "savefig.dpi": 160,
}


def draw_plots(table: Table) -> dict[str, bytes]:
    """{file name: contents}: sparsity.png and .svg, cost.png and .svg."""
    return {
        **_files("sparsity", lambda: _against_sparsity(table)),
        **_files("cost", lambda: _front(table)),
    }


def _against_sparsity(table: Table) -> Figure:
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    columns = min(len(blocks), MOST_COLUMNS)
    figure = Figure(figsize=(WIDTH, HEIGHT * -(-len(blocks) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(blocks) // columns), columns, sharex=True, sharey=True, squeeze=False)
    panels = grid.flatten()
    for axes, block in zip(panels, blocks, strict=False):
        _plot_lines(axes, table, block)
        axes.set(title=f"{by_text(block)} blocks", xlabel="sparsity asked for")
        axes.set_xticks(sorted({row.sparsity for row in table.rows}))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(labelbottom=True)
    for axes in panels[len(blocks) :]:
        axes.remove()
    _keep_within_shares(panels[0], table)
    _finish(figure, list(grid[:, 0]), table)
    return figure


def _front(table: Table) -> Figure:
    """The metric against the size, and against the multiply-adds if they are known: every row, and the front of the best.

    Nothing on the front is beaten by a row that costs less. A colour a method, a shape a block size.
    """
    costs: list[tuple[str, str, float | None, Callable[[float], str]]] = [
        ("bytes_sparse", "size, block-sparse", table.bytes_dense, lambda value: size_text(round(value))),
        (
            "kept_multiply_adds",
            "multiply-adds of an example",
            table.multiply_adds,
            lambda value: count_text(round(value)),
        ),
    ]
    known = [cost for cost in costs if any(row.average(cost[0]) for row in table.rows)]
    figure = Figure(figsize=(WIDTH, HEIGHT * max(1, len(known))), layout="constrained")
    panels = figure.subplots(max(1, len(known)), 1, squeeze=False)[:, 0]
    for axes, (key, label, dense, written) in zip(panels, known, strict=False):
        _plot_points(axes, table, key, dense)
        axes.set(xlabel=label, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, written=written: written(value)))
        _keep_within_shares(axes, table)
    _finish(figure, list(panels), table, _key(table))
    return figure


def _key(table: Table) -> list[Line2D]:
    """A colour for each method, a shape for each block size if there are several, and the two lines."""
    methods = list(dict.fromkeys(row.method for row in table.rows))
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    plain: dict[str, Any] = {"color": INK, "markersize": 5, "linestyle": "none"}
    shapes = [
        Line2D([], [], marker=SHAPES[i % len(SHAPES)], label=by_text(block), **plain) for i, block in enumerate(blocks)
    ]
    return [
        *(Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=5, label=name) for i, name in enumerate(methods)),
        *(shapes if len(shapes) > 1 else []),
        Line2D([], [], color=INK, linewidth=1, label="front"),
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), marker="*", label="dense"),
    ]


def front(table: Table, key: str) -> list[tuple[float, float, Row]]:
    """(cost, mean metric, row) of the rows that no cheaper or equally cheap row beats, the cheapest first.

    `key`: `bytes_sparse` or `kept_multiply_adds`. Rows without a result, or whose cost is not known, are left out.
    """
    sign = -1 if table.higher_is_better else 1
    points = [(cost, row.mean, row) for row in table.rows if row.mean is not None and (cost := row.average(key))]
    found: list[tuple[float, float, Row]] = []
    for cost, mean, row in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not found or sign * mean < sign * found[-1][1]:
            found.append((cost, mean, row))
    return found


def _plot_points(axes: Axes, table: Table, key: str, dense: float | None) -> None:
    methods = list(dict.fromkeys(row.method for row in table.rows))
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    best = front(table, key)
    axes.plot(
        [cost for cost, _, _ in best],
        [mean for _, mean, _ in best],
        drawstyle="steps-post",
        color=INK,
        linewidth=1,
    )
    axes.axhline(table.dense, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if dense is not None:
        axes.plot([dense], [table.dense], color=INK, marker="*", markersize=10, linestyle="none")
    for method in methods:
        rows = [row for row in table.rows if row.method == method]
        for block in blocks:
            points = [
                (cost, row.mean, row.std or 0.0)
                for row in rows
                if row.block == block and row.mean is not None and (cost := row.average(key))
            ]
            if points:
                x, mean, std = zip(*points, strict=True)
                colour, shape = COLOURS[methods.index(method) % len(COLOURS)], SHAPES[blocks.index(block) % len(SHAPES)]
                axes.errorbar(x, mean, yerr=std, color=colour, marker=shape, markersize=5, linestyle="none", capsize=2)


def _plot_lines(axes: Axes, table: Table, block: str) -> None:
    methods = list(dict.fromkeys(row.method for row in table.rows))
    axes.axhline(table.dense, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="dense")
    for index, method in enumerate(methods):
        points = [
            (row.sparsity, row.mean, row.std or 0.0)
            for row in table.rows
            if row.method == method and row.block == block and row.mean is not None
        ]
        if points:
            x, mean, std = zip(*sorted(points), strict=True)
            colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
            axes.errorbar(
                x, mean, yerr=std, label=method, color=colour, marker=shape, markersize=4, linewidth=1.4, capsize=2
            )


def _keep_within_shares(axes: Axes, table: Table) -> None:
    values = [value for row in table.rows for value in row.values]
    keep_within_shares(axes, [table.dense, *values])


def _finish(figure: Figure, leftmost: Sequence[Axes], table: Table, key: Sequence[Line2D] = ()) -> None:
    better = "higher" if table.higher_is_better else "lower"
    for axes in leftmost:
        axes.set_ylabel(f"{table.metric} ({better} is better)")
    handles: Sequence[Artist] = key or leftmost[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _files(name: str, draw: Callable[[], Figure]) -> dict[str, bytes]:
    found = {}
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever matplotlibrc the user has
        for key, value in STYLE.items():
            mpl.rcParams[key] = value  # type: ignore[index]
        figure = draw()
        FigureCanvasAgg(figure)
        for ending, metadata in (("png", {"Software": "sapp"}), ("svg", dict.fromkeys(("Date", "Creator")))):
            file = io.BytesIO()
            figure.savefig(file, format=ending, metadata=metadata)
            found[f"{name}.{ending}"] = file.getvalue()
    return found
