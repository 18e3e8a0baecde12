"""The plots of a comparison: the metric against sparsity, and against what is left to compute and to store."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from sapp_cli.comparing.table import Row, Table, by_text
from sapp_cli.report.wording import count_text, size_text

# Okabe and Ito's colours, told apart by the colour-blind, and a shape for each besides.
INK, RULE = "#333333", "#cccccc"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
SHAPES = "osD^vPX"
PANEL = (4.6, 3.3)  # inches
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
    """{file name: contents}: sparsity.png and .svg, cost.png and .svg; a panel a block size, a line a method."""
    return {
        **_files("sparsity", lambda: _against_sparsity(table)),
        **_files("cost", lambda: _against_cost(table)),
    }


def _against_sparsity(table: Table) -> Figure:
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    figure = Figure(figsize=(PANEL[0] * len(blocks), PANEL[1] + 0.5), layout="constrained")
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    for axes, block in zip(panels, blocks, strict=True):
        _plot_lines(axes, table, block, lambda row: row.sparsity)
        axes.set(title=f"{by_text(block)} blocks", xlabel="sparsity asked for")
        axes.set_xticks(sorted({row.sparsity for row in table.rows}))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(figure, panels[:1], table, len(blocks))
    return figure


def _against_cost(table: Table) -> Figure:
    """Multiply-adds above, bytes below."""
    blocks = list(dict.fromkeys(row.block for row in table.rows))
    costs: list[tuple[str, str, float | None, Callable[[float], str]]] = [
        (
            "kept_multiply_adds",
            "multiply-adds of an example",
            table.multiply_adds,
            lambda value: count_text(round(value)),
        ),
        ("bytes_sparse", "size, block-sparse", table.bytes_dense, lambda value: size_text(round(value))),
    ]
    known = [cost for cost in costs if any(row.average(cost[0]) for row in table.rows)]
    figure = Figure(figsize=(PANEL[0] * len(blocks), PANEL[1] * len(known) + 0.5), layout="constrained")
    grid = figure.subplots(len(known), len(blocks), sharey=True, squeeze=False)
    for panels, (key, label, _, written) in zip(grid, known, strict=True):
        for axes, block in zip(panels, blocks, strict=True):
            _plot_lines(axes, table, block, lambda row, key=key: row.average(key))  # type: ignore[misc]
            axes.set_xscale("log")
            axes.set(title=f"{by_text(block)} blocks", xlabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, written=written: written(value)))
    _finish(figure, list(grid[:, 0]), table, len(blocks))
    return figure


def _plot_lines(axes: Axes, table: Table, block: str, place: Callable[[Row], float | None]) -> None:
    methods = list(dict.fromkeys(row.method for row in table.rows))
    axes.axhline(table.dense, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="dense")
    for index, method in enumerate(methods):
        points = [
            (where, row.mean, row.std or 0.0)
            for row in table.rows
            if row.method == method
            and row.block == block
            and row.mean is not None
            and (where := place(row)) is not None
        ]
        if points:
            x, mean, std = zip(*sorted(points), strict=True)
            colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
            axes.errorbar(
                x, mean, yerr=std, label=method, color=colour, marker=shape, markersize=4, linewidth=1.4, capsize=2
            )


def _finish(figure: Figure, leftmost: Sequence[Axes], table: Table, columns: int) -> None:
    better = "higher" if table.higher_is_better else "lower"
    for axes in leftmost:
        axes.set_ylabel(f"{table.metric} ({better} is better)")
    handles, labels = leftmost[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)


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
