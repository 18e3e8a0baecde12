"""The report as one HTML file, with pictures of the layers, the run and the kept blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from sapp_cli.report.comparison import Comparison
from sapp_cli.report.figures import Drawing, draw_layers, draw_norms, draw_run, kept_blocks_png
from sapp_cli.report.folding import fold, folded_name
from sapp_cli.report.gallery import Gallery, LayerView
from sapp_cli.report.page import NO_BREAK, Headline, render, templates, write_page
from sapp_cli.report.run import RunMetric, RunRecord
from sapp_cli.report.sparsity import LayerSparsity, ModelSparsity, SparsityReport
from sapp_cli.report.speed import SpeedRecord
from sapp_cli.report.texts import targeted_text, work_text
from sapp_cli.report.wording import (
    by,
    counted,
    metric_text,
    percent,
    printable,
    size_text,
    times_fewer,
    times_smaller,
)

HTML_FILE = "sparsity.html"
KEPT_COLOUR = (0.24, 0.50, 0.92)  # of the pictures; at least 3 : 1 against the page, light and dark
MOST_OPEN_MASKS = 24  # pictures; more are folded by kind of layer
FLATTEST, TALLEST = 2.5, 1 / 1.6  # width to height of a picture
SPEED_BEGIN, SPEED_END = "<!-- speed: begin -->", "<!-- speed: end -->"


@dataclass(frozen=True)
class MaskPicture:
    """The kept blocks of one layer."""

    name: str
    address: str
    width: int
    height: int
    ratio: str
    caption: str


def write_html(
    path: Path,
    name: str,
    report: SparsityReport,
    gallery: Gallery,
    run: RunRecord | None,
    comparison: Comparison | None = None,
    speed: SpeedRecord | None = None,
) -> None:
    """Write the report on the checkpoint `name` to `path`, whole or not at all. `gallery`: what `measure` showed it."""
    write_page(path, html_report(name, report, gallery, run, comparison, speed))


def html_report(
    name: str,
    report: SparsityReport,
    gallery: Gallery,
    run: RunRecord | None,
    comparison: Comparison | None = None,
    speed: SpeedRecord | None = None,
) -> str:
    """The page. The same checkpoint gives the same page."""
    environment = templates()
    shown = _shown_views(report, gallery)
    prunable = [layer for layer in report.layers if layer.prunable]
    layers_drawing = draw_layers(report.layers) if any(layer.nonzero < layer.parameters for layer in prunable) else None
    masks = list(_masks(report, gallery))
    folded = fold([(mask.name, None) for mask in masks]) if len(masks) > MOST_OPEN_MASKS else []
    by_name = {mask.name: mask for mask in masks}
    kinds = [(names, [by_name[name] for name in names]) for names in folded if len(names) > 1]
    in_kinds = {name for names, _ in kinds for name in names}
    return render(
        environment,
        "report.html.j2",
        name=printable(name),
        subtitle=_subtitle(report, run),
        headline=list(_headline(report, run)),
        report=report,
        has_work=report.has_work,
        totals=_totals(report),
        has_targets=any(layer.target is not None for layer in report.layers),
        layers_drawing=_marked(layers_drawing),
        run=run,
        run_drawing=_marked(draw_run(run)) if run else None,
        phases=list(dict.fromkeys(phase.phase for phase in run.phases if phase.phase.isalpha())) if run else [],
        evaluated_loss=bool(run and run.evaluations.get("loss")),
        evaluated_metrics=bool(run and run.shown_evaluations),
        comparison=comparison,
        speed=Markup(f"{SPEED_BEGIN}\n{_speed_section(environment, speed)}{SPEED_END}"),
        masks=[mask for mask in masks if mask.name not in in_kinds],
        kinds_of_masks=[(folded_name(names), found) for names, found in kinds],
        scaled=any(view.blocks_a_cell != (1, 1) for view in shown),
        norms_drawing=_marked(draw_norms(shown)),
        norms_text=_norms_text(report, shown),
    )


def with_speed(page: str, speed: SpeedRecord) -> str | None:
    """A page of `html_report`, its section on speed put in or replaced; None for a page that has no place for it."""
    before, begin, rest = page.partition(SPEED_BEGIN)
    _, end, after = rest.partition(SPEED_END)
    if not begin or not end:
        return None
    return f"{before}{begin}\n{_speed_section(templates(), speed)}{end}{after}"


def _speed_section(environment: Environment, speed: SpeedRecord | None) -> Markup:
    return Markup("" if speed is None else environment.get_template("speed.html.j2").render(speed=speed))


def _marked(drawing: Drawing | None) -> Drawing | None:
    """The drawing as markup: matplotlib has escaped every text in it."""
    return None if drawing is None else Drawing(Markup(drawing.wide), Markup(drawing.narrow))


def _shown_views(report: SparsityReport, gallery: Gallery) -> list[LayerView]:
    """Of the pruned layers; of all where none is pruned."""
    layers = report.pruned or report.layers
    return [gallery.views[layer.name] for layer in layers if layer.name in gallery.views]


def _subtitle(report: SparsityReport, run: RunRecord | None) -> str:
    pruned, prunable = len(report.pruned), sum(layer.prunable for layer in report.layers)
    text = f"{report.model.parameters:,} parameters; {pruned} of {prunable} prunable layers are pruned"
    if run is not None and run.method:
        text += f", with {run.method} in {run.steps:,} steps"
    return text


def _headline(report: SparsityReport, run: RunRecord | None) -> Iterator[Headline]:
    model = report.model
    if report.pruned:
        smaller = times_smaller(model.bytes_dense, model.bytes_sparse)
        sizes = f"{size_text(model.bytes_dense)} → {size_text(model.bytes_sparse)}".replace(" ", NO_BREAK)
        yield Headline(
            "size, dense → block-sparse", sizes, smaller or "not smaller", "good" if smaller else "bad", True
        )
        requested = report.requested_sparsity
        asked = "" if requested is None else f"{percent(requested)} requested, "
        yield Headline("blocks removed", percent(report.pruned_block_sparsity), f"{asked}{targeted_text(report)}")
    else:
        yield Headline("size", size_text(model.bytes_dense), "no layer is pruned")
    if report.pruned and model.multiply_adds is not None and model.kept_multiply_adds is not None:
        fewer = times_fewer(model.multiply_adds, model.kept_multiply_adds)
        work = work_text(model).replace(" ", NO_BREAK)
        yield Headline("multiply-adds of an example", work, fewer or "not fewer", "good" if fewer else "bad", True)
    yield Headline("zeros in prunable weights", percent(model.prunable_sparsity), f"of {model.prunable_parameters:,}")
    yield Headline("zeros in the whole model", percent(model.sparsity), f"of {model.parameters:,}")
    for name, metric in (run.metrics if run else {}).items():
        yield _metric_headline(printable(name), metric)


def _metric_headline(name: str, metric: RunMetric) -> Headline:
    better = "higher" if metric.higher_is_better else "lower"
    value = f"{metric_text(metric.dense)} → {metric_text(metric.pruned)}"
    drop = metric.drop
    if not math.isfinite(drop):
        note, tone = "not a number", "bad"
    elif metric_text(metric.dense) == metric_text(metric.pruned):
        note, tone = "no change", ""
    else:
        note, tone = (f"{metric_text(drop)} worse", "bad") if drop > 0 else (f"{metric_text(-drop)} better", "good")
    return Headline(f"{name} ({better} is better)", value, note, tone, True)


def _totals(report: SparsityReport) -> list[tuple[str, float, int, int, ModelSparsity | None]]:
    model, pruned = report.model, report.pruned
    sizes = sum(layer.bytes_dense for layer in pruned), sum(layer.bytes_sparse for layer in pruned)
    prunable = [layer for layer in report.layers if layer.prunable]
    return [
        ("blocks of pruned layers", report.pruned_block_sparsity, *sizes, None),
        (
            "all prunable weights",
            model.prunable_sparsity,
            sum(layer.bytes_dense for layer in prunable),
            sum(layer.bytes_sparse for layer in prunable),
            None,
        ),
        ("whole model", model.sparsity, model.bytes_dense, model.bytes_sparse, model),
    ]


def _masks(report: SparsityReport, gallery: Gallery) -> Iterator[MaskPicture]:
    for layer in report.pruned:
        view = gallery.views.get(layer.name)
        if view is None or layer.block is None:
            continue
        rows, columns = view.shares.shape
        proportion = (view.grid[1] * layer.block[1]) / (view.grid[0] * layer.block[0])
        yield MaskPicture(
            name=layer.name,
            address=kept_blocks_png(view, KEPT_COLOUR),
            width=columns,
            height=rows,
            ratio=f"{min(FLATTEST, max(TALLEST, proportion)):.3f}",
            caption=_caption(layer, view),
        )


def _caption(layer: LayerSparsity, view: LayerView) -> str:
    kept = f"{layer.kept_blocks:,} of {layer.blocks:,} blocks kept; {by(view.grid)} blocks of {by(layer.block)}"
    down, across = view.blocks_a_cell
    return kept if view.blocks_a_cell == (1, 1) else f"{kept}; a pixel is {down}×{across} blocks"


def _norms_text(report: SparsityReport, views: list[LayerView]) -> str:
    of = "The kept blocks of all pruned layers" if report.pruned else "All blocks of all layers"
    text = (
        f"{of}, by the Frobenius norm of their weights; and in each layer the middle 90 % (thin), "
        "the middle half (thick) and the median (mark)."
    )
    broken = [view.name for view in views if not view.finite]
    return text + (f" Blocks with NaN or inf, in {counted(len(broken), 'layer')}, are left out." if broken else "")
