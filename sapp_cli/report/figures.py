"""The drawings of the HTML report: matplotlib's SVG, its colours handed over to the page's light and dark style.

Every drawing exists twice, wide and narrow, so that its letters can be read on a phone as well.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from sapp_cli.report.gallery import EDGES, LayerView
from sapp_cli.report.run import RunRecord
from sapp_cli.report.sparsity import LayerSparsity
from sapp_cli.report.svg import NO_NAMES, lay_out, themed
from sapp_cli.report.wording import by, counted, percent, printable

COLOURS = {
    name: f"#00000{digit}" for digit, name in enumerate(("ink", "muted", "rule", "accent", "second", "faint"), 1)
}
"""Colours that no drawing has, each standing for a variable of the page's style: #000001 becomes var(--ink)."""
PHASE_COLOURS = {"dense": "#000007", "sparsification": "#000008", "sparse": "#000009"}
VARIABLES = {code: name for name, code in COLOURS.items()} | {
    code: f"phase-{phase}" for phase, code in PHASE_COLOURS.items()
}
PARTS = ("whole", "removed")  # of a bar
MOST_POINTS = 500
MOST_BARS = 48
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: smaller, searchable, in the page's typeface
    "svg.hashsalt": "sapp",  # the same report twice is the same file
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": COLOURS["muted"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """A figure in both widths, as SVG elements to stand in the page."""

    wide: str
    narrow: str


def draw_layers(layers: Sequence[LayerSparsity]) -> Drawing:
    """A bar for each prunable layer, as wide as its share of the weights and as high as its sparsity."""
    prunable = [layer for layer in layers if layer.prunable and layer.parameters]
    total = sum(layer.parameters for layer in prunable)
    widths = np.array([100 * layer.parameters / total for layer in prunable])
    lefts = np.concatenate(([0.0], np.cumsum(widths)[:-1]))
    heights = np.array([100 * layer.shown_sparsity for layer in prunable])

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        whole = axes.bar(lefts, 100, widths, align="edge", color=COLOURS["faint"], edgecolor="none")
        removed = axes.bar(lefts, heights, widths, align="edge", color=COLOURS["accent"], edgecolor="none")
        for index, bars in enumerate(zip(whole, removed, strict=True)):
            for part, bar in zip(PARTS, bars, strict=True):
                bar.set_gid(f"{part}-{index}")
        for left, width, layer in zip(lefts, widths, prunable, strict=True):
            if left > 0:
                axes.axvline(left, color=COLOURS["rule"], linewidth=0.5)
            if layer.target is not None:
                axes.hlines(100 * layer.target, left, left + width, color=COLOURS["ink"], linewidth=1.6)
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="share of all prunable weights, in file order", ylabel="sparsity")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))

    sparsest = (
        f"{counted(len(prunable), 'prunable layer')}; sparsity from {heights.min():.1f} % to {heights.max():.1f} %."
    )
    names = {
        f"{part}-{index}": f"{printable(layer.name)}: {percent(layer.shown_sparsity)} of {by(layer.shape)}"
        for index, layer in enumerate(prunable)
        for part in PARTS
    }
    title = "Sparsity of each layer against its target"
    return _draw("layers", title, sparsest, paint, (10.4, 2.7), (4.2, 2.4), names)


def draw_run(run: RunRecord) -> Drawing | None:
    """The timetable: sparsity over the steps with the phases shaded, loss and metrics below; None without a log."""
    if not run.sparsity or not run.phases:
        return None
    shown = run.shown_evaluations

    def paint(figure: Figure, narrow: bool) -> None:
        rows = 2 + len(shown)
        panels = figure.subplots(rows, 1, sharex=True, gridspec_kw={"height_ratios": [1.3] + [1] * (rows - 1)})
        for axes in panels:
            for phase in run.phases:
                colour = PHASE_COLOURS.get(phase.phase, COLOURS["faint"])
                axes.axvspan(phase.first_step - 1, phase.last_step, color=colour, linewidth=0)
            axes.set_xlim(0, run.steps)
        steps, shares = _thinned(_with_dense_phases(run))
        panels[0].plot(steps, 100 * shares, color=COLOURS["accent"], linewidth=2)
        panels[0].set(ylim=(0, 104), ylabel="sparsity")
        panels[0].yaxis.set_major_formatter(PercentFormatter(decimals=0))
        panels[0].set_yticks([0, 25, 50, 75, 100])
        _plot_loss(panels[1], run)
        for axes, name in zip(panels[2:], shown, strict=True):
            _plot_evaluations(axes, run, name)
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if narrow:
            panels[-1].xaxis.set_major_locator(MaxNLocator(4))
        figure.align_ylabels(list(panels))

    phases = ", ".join(f"{phase.phase} to step {phase.last_step:,}" for phase in run.phases[:12])
    height = 3.4 + 1.3 * len(shown)
    text = f"Phases: {phases}. Below on the same axis: {', '.join(['loss', *map(_safe, shown)])}."
    return _draw("run", "Sparsity over the steps of the run", text, paint, (10.4, height), (4.2, height))


def draw_norms(views: Sequence[LayerView]) -> Drawing | None:
    """Histogram of the block norms over all layers, and their range in each layer; None where there is no block."""
    histogram = sum((view.histogram for view in views), np.zeros(len(EDGES) - 1, np.int64))
    filled = np.flatnonzero(histogram)
    if not filled.size:
        return None
    bins = max(1, -(-int(filled[-1] + 1 - filled[0]) // MOST_BARS))  # of the histogram, put together into one bar
    starts = np.arange(filled[0], filled[-1] + 1, bins)
    bars = np.add.reduceat(histogram[: filled[-1] + 1], starts)
    edges = EDGES[np.minimum([*starts, starts[-1] + bins], len(EDGES) - 1)]
    with_norms = [(index, view) for index, view in enumerate(views, 1) if view.norms]

    def paint(figure: Figure, narrow: bool) -> None:
        whole, each = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        whole.stairs(bars, edges, fill=True, color=COLOURS["accent"])
        whole.set(xlabel="norm of a block", ylabel="blocks")
        _logarithmic(whole, "x", edges[0], edges[-1])
        whole.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        whole.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        places = [index for index, _ in with_norms]
        norms = np.array([view.norms for _, view in with_norms])  # (layers, quantiles)
        thick = max(1.5, min(7.0, 160 / max(1, len(views))))
        each.vlines(places, norms[:, 0], norms[:, 4], color=COLOURS["accent"], linewidth=1)
        each.vlines(places, norms[:, 1], norms[:, 3], color=COLOURS["accent"], linewidth=thick)
        each.plot(places, norms[:, 2], linestyle="none", marker="_", markersize=thick + 2, color=COLOURS["ink"])
        each.set(xlabel="layer, in file order", ylabel="norm of a block")
        _logarithmic(each, "y", norms[:, 0].min(), norms[:, 4].max())
        each.set_xlim(0.4, len(views) + 0.6)
        each.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    middle = np.median(norms_of([view for _, view in with_norms]))
    where = f"{counted(int(histogram.sum()), 'block')} in {counted(len(with_norms), 'layer')}"
    text = f"{where}; the middle layer's median norm is {middle:.3g}."
    return _draw("norms", "Distribution of the block norms", text, paint, (10.4, 3.0), (4.2, 5.0))


def norms_of(views: Sequence[LayerView]) -> list[float]:
    """The median norm of each layer."""
    return [view.norms[2] for view in views]


def kept_blocks_png(view: LayerView, colour: tuple[float, float, float]) -> str:
    """The picture of a layer's kept blocks as a data: address, a pixel a cell, the more opaque the more is kept."""
    pixels = np.empty((*view.shares.shape, 4))
    pixels[..., :3] = colour
    pixels[..., 3] = np.where(view.shares > 0, 0.12 + 0.88 * view.shares, 0)
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "sapp"})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _with_dense_phases(run: RunRecord) -> list[tuple[int, float]]:
    """What was logged, and the zeros that the timetable knows of: nothing is removed from the first to the last dense step."""
    dense = [phase for phase in run.phases if phase.phase == "dense"]
    known = {step: 0.0 for phase in dense for step in (phase.first_step - 1, phase.last_step)}
    return sorted({**known, **dict(run.sparsity)}.items())


def _plot_loss(axes: Axes, run: RunRecord) -> None:
    steps, losses = _thinned(run.loss)
    axes.plot(steps, losses, color=COLOURS["second"], linewidth=1.4)
    evaluated = run.evaluations.get("loss", ())
    if evaluated:
        axes.plot(
            *zip(*evaluated, strict=True),
            color=COLOURS["ink"],
            linestyle="none",
            marker="o",
            markersize=3.5,
            clip_on=False,
        )
    values = [*losses, *(value for _, value in evaluated)]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        _logarithmic(axes, "y", min(values), max(values))
    axes.set_ylabel("loss")


def _plot_evaluations(axes: Axes, run: RunRecord, name: str) -> None:
    steps, values = _thinned(run.evaluations[name])
    axes.plot(steps, values, color=COLOURS["second"], linewidth=1.4, marker="o", markersize=3.5, clip_on=False)
    metric = run.metrics.get(name)
    shown = list(values)
    if metric is not None and np.isfinite(metric.dense):
        axes.axhline(metric.dense, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
        shown.append(metric.dense)
    axes.margins(y=0.15)
    keep_within_shares(axes, shown)
    axes.set_ylabel(_safe(name)[:24])


def keep_within_shares(axes: Axes, values: Sequence[float]) -> None:
    """End the y axis at 0 and 1 if no value is beyond: an accuracy has no room above 1."""
    finite = [value for value in values if np.isfinite(value)]
    low, high = axes.get_ylim()
    if finite and min(finite) >= 0 and max(finite) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
        if low < high:
            axes.set_ylim(low, high)


def _logarithmic(axes: Axes, side: Literal["x", "y"], low: float, high: float) -> None:
    """A logarithmic scale with a few plain numbers; matplotlib's own labels are formulas, which the page does not set."""
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    decades = np.log10(high / low)
    steps = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(10, steps, numticks=7) if decades > 0.4 else MaxNLocator(4))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values); of a long curve the means over stretches of it."""
    steps, values = np.array([step for step, _ in points], float), np.array([value for _, value in points], float)
    stretch = -(-len(points) // MOST_POINTS)
    if stretch > 1:
        starts = np.arange(0, len(points), stretch)
        lengths = np.diff([*starts, len(points)])
        steps, values = np.add.reduceat(steps, starts) / lengths, np.add.reduceat(values, starts) / lengths
    return steps, values


def _safe(name: str) -> str:
    """A metric's name as matplotlib's typeface can draw it; what it cannot becomes a question mark."""
    return name.encode("ascii", "replace").decode() if name.isprintable() else ascii(name)[1:-1]


def _draw(
    key: str,
    title: str,
    description: str,
    paint: Callable[[Figure, bool], None],
    wide: tuple[float, float],
    narrow: tuple[float, float],
    names: Mapping[str, str] = NO_NAMES,
) -> Drawing:
    """The drawing in both sizes (inches). `names` {gid of an artist: what is shown while the pointer is on it}."""
    found = []
    for name, size in (("wide", wide), ("narrow", narrow)):
        with mpl.rc_context():
            mpl.rcdefaults()  # whatever matplotlibrc the user has
            for key_of_style, value in STYLE.items():
                mpl.rcParams[key_of_style] = value  # type: ignore[index]
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasSVG(figure)
            paint(figure, name == "narrow")
            lay_out(figure)
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
        found.append(themed(file.getvalue(), f"{key}-{name}", title, description, VARIABLES, names))
    return Drawing(*found)
