"""Tables and closing lines of the verbs, for people; data goes to stdout."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sapp_cli.cli.report_table import TOTALS, layer_table
from sapp_cli.report.texts import budgets_text, no_gain_text, not_counted_text, targeted_text
from sapp_cli.report.wording import metric_text, percent, printable, size_text, time_text

if TYPE_CHECKING:
    from sapp_cli.pipeline.prune import PruneResult
    from sapp_cli.planning import Plan
    from sapp_cli.rehearsal import Duration
    from sapp_cli.report.sparsity import SparsityReport


def print_plan(console: Console, plan: Plan, duration: Duration | None = None, every_layer: bool = False) -> None:
    """Layers with their reasons, timetable, sizes, memory, and where it was estimated the time.

    Layers that are alike share a row unless `every_layer`.
    """
    print_layers(console, plan.report, every_layer)
    for note in (not_counted_text(plan.report), no_gain_text(plan.report)):
        if note:
            console.print(note, markup=False)
    console.print()
    model, targets = plan.report.model, plan.targets
    console.print(
        f"target: {percent(targets['prunable_sparsity'])} of all prunable weights, {percent(targets['sparsity'])} of the "
        f"model; in whole blocks: {percent(model.prunable_sparsity)} and {percent(model.sparsity)}"
    )
    if plan.allocation == "balanced" and "multiply_adds" not in plan.report.budgets:
        no_gain = all(layer.no_gain for layer in plan.report.targeted)
        why = (
            "no pruned layer is faster block-sparse"
            if no_gain
            else "the multiply-adds of the pruned layers are not known"
        )
        console.print(
            f"allocation balanced: {why}, so parameters are the only budget; training moves blocks between layers"
        )
    elif plan.allocation == "balanced":
        console.print(
            "allocation balanced: training moves blocks between layers. Size and multiply-adds here are upper limits, the "
            "sparsity is a lower limit"
        )
    elif plan.allocation != "uniform":
        console.print(
            f"allocation {plan.allocation}: training moves blocks between layers; the blocks above are their budget together"
        )
    for rule in plan.rules:
        taken = f", {rule.taken} of them decided by an earlier rule" if rule.taken else ""
        console.print(f"rule '{rule.pattern}': matches {rule.weights} of {len(plan.layers)} weights{taken}")
    console.print()
    console.print(_timetable(plan))
    for choice in plan.choices:
        console.print(choice, markup=False)
    console.print()
    parts = ", ".join(
        f"{name.replace('_', ' ')} {size_text(size)}" for name, size in plan.memory.items() if size and name != "total"
    )
    unknown = "" if "activations" in plan.memory else ", activations not counted: what the model takes is not known"
    console.print(f"memory: at most {size_text(plan.memory['total'])} at once{unknown}; {parts}")
    console.print(f"on disk: {size_text(model.bytes_dense)} dense, {size_text(model.bytes_sparse)} block-sparse")

    if plan.search is not None:
        console.print(f"learning rate: searched before the run: {plan.search.text}; {plan.search.cost}")
    if duration is not None:
        steps = ", ".join(f"{phase} {time_text(seconds)}" for phase, seconds in duration.steps.items())
        console.print(
            f"time: {duration_text(duration.total)}, training {duration_text(duration.training)}; a step: {steps}"
        )
        if plan.search is not None:
            searched = duration.training * plan.search.planned / plan.search.steps
            most = duration.training * plan.search.budget / plan.search.steps
            console.print(
                f"time of the search: about {duration_text(searched)}, at most {duration_text(most)}, beside that"
            )


def print_layers(console: Console, report: SparsityReport, every_layer: bool, verb: str = "plan") -> None:
    """The layers of a plan or a report with their reasons."""
    table = layer_table(report, every_layer, console.width, verb)
    console.print(table)
    if table.row_count < len(report.layers) + TOTALS:
        console.print("×: layers that are alike share a row; --verbose gives each its own")


def duration_text(seconds: float) -> str:
    """As in "45 s", "12 min" or "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _timetable(plan: Plan) -> Table:
    """The phases, in steps where their number is known, and as shares of the run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    for column in ("round", "share of the run", *(("first step", "last step") if plan.schedule else ())):
        table.add_column(column, justify="right")
    phases = plan.schedule.phases if plan.schedule else [None] * len(plan.spans)
    for span, phase in zip(plan.spans, phases, strict=True):
        steps = (f"{phase.start + 1:,}", f"{phase.stop:,}") if phase else ()
        table.add_row(span.phase.value, str(span.round or "–"), percent(float(span.fraction)), *steps)
    return table


def print_result(console: Console, result: PruneResult) -> None:
    """What a run came to: metric, sparsity, sizes, where things are."""
    for name, metric in result.metrics.items():
        console.print(f"{name:<12} {metric_text(metric.dense)} dense → {metric_text(metric.pruned)} pruned")
    report = result.report
    requested = report.requested_sparsity
    asked = "" if requested is None else f"{percent(requested)} requested → "
    console.print(
        f"{'sparsity':<12} {asked}{percent(report.pruned_block_sparsity)} of the blocks of {targeted_text(report)}, "
        f"{percent(report.model.prunable_sparsity)} of all prunable weights, {percent(report.model.sparsity)} of the model"
    )
    if budgets := budgets_text(report):
        console.print(f"{'kept':<12} {budgets}")
    if no_gain := no_gain_text(report):
        console.print(f"{'not faster':<12} {no_gain}", markup=False)
    if result.unranked:
        console.print(f"{'kept whole':<12} {printable(result.unranked)}", markup=False)
    sizes = result.sizes
    written = []
    if sizes.dense:
        written.append(f"{size_text(sizes.dense)} dense")
    if sizes.sparse:
        written.append(f"{size_text(sizes.sparse)} block-sparse ({sizes.source / sizes.sparse:.1f}× smaller)")
    console.print(f"{'size':<12} {size_text(sizes.source)} before → {', '.join(written)}")
    console.print(f"{'written to':<12} {printable(str(result.out))}")
    if (result.out / "config.json").is_file():
        folder = printable(shlex.quote(str(result.out)))
        console.print(f"{'to publish':<12} hf upload USER/NAME {folder}", markup=False, soft_wrap=True)


def print_metrics(console: Console, metrics: dict[str, float]) -> None:
    """One line a metric."""
    for name, value in metrics.items():
        console.print(f"{name:<12} {metric_text(value)}")


def print_recipes(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Shipped recipes and their titles."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, title in rows:
        table.add_row(name, title)
    console.print(table)
