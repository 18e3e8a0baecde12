"""The comparison as one HTML file: the table, its plots, and how it was made."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sapp_cli.comparing.cells import Budget, Cell
from sapp_cli.comparing.figures import INK, RULE, front
from sapp_cli.comparing.table import Row, Table, by_text, value_text
from sapp_cli.report.page import Headline, render, templates
from sapp_cli.report.svg import themed
from sapp_cli.report.wording import (
    count_text,
    counted,
    metric_text,
    percent,
    printable,
    size_text,
    times_fewer,
    times_smaller,
)

VARIABLES = {INK: "ink", RULE: "rule", "#ffffff": "surface"}
LEAST_PIXELS = 620  # of a plot, which a narrower screen scrolls


@dataclass(frozen=True)
class Plot:
    """One of the plots, as an element of the page."""

    svg: Markup
    least_width: int  # pixels
    lines: tuple[str, ...] = ()  # below it


@dataclass(frozen=True)
class Cost:
    """A figure of a row, and how it compares with the dense network."""

    value: float | None
    text: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table as the page shows it; figures are beside their texts, for sorting."""

    method: str
    block: str
    sparsity: float | None  # None: the dense network
    value: float | None
    text: str
    values: str  # of the seeds
    is_best: bool
    zeros: float | None
    multiply_adds: Cost
    size: Cost


def html_comparison(table: Table, plots: Mapping[str, bytes], cells: Sequence[Cell], budget: Budget, out: str) -> str:
    """The page. `plots`: those of `draw_plots`; `out`: the folder, as the command line had it."""
    name = f"Pruning methods on {printable(budget.checkpoint.name)}"
    methods = ", ".join(dict.fromkeys(row.method for row in table.rows))
    return render(
        templates("comparing"),
        "comparison.html.j2",
        name=name,
        subtitle=_subtitle(table),
        headline=list(_headline(table)),
        table=table,
        lines=[_dense_line(table), *(_line(row, table) for row in table.rows)],
        plots=[
            _plot(
                plots,
                "sparsity",
                f"{table.metric} against the sparsity asked for",
                f"A panel a block size, a line a method: {methods}; dashed: dense. The figures are those of the table.",
            ),
            _plot(
                plots,
                "cost",
                f"{table.metric} against size and multiply-adds",
                f"A point a row of the table, a colour a method: {methods}; the line joins the rows that no cheaper one "
                "beats; star and dashed line: dense.",
                tuple(_fronts(table)),
            ),
        ],
        notes=table.footer,
        command=shlex.join(command_line(cells, budget, out)),
        runs=len(cells),
    )


def command_line(cells: Sequence[Cell], budget: Budget, out: str) -> list[str]:
    """The `sapp compare` that has these cells, defaults written out."""
    variants = {cell.variant.label: cell.variant for cell in cells}
    named = [v.label if v.label == v.method else f"{v.label}={v.method}" for v in variants.values()]
    choices = {
        "--methods": named,
        "--block-size": [cell.block for cell in cells],
        "--sparsity": [repr(cell.sparsity) for cell in cells],
        "--seeds": [str(cell.seed) for cell in cells],
    }
    words = ["sapp", "compare", str(budget.checkpoint), "-r", budget.recipe, "-o", out]
    for flag, values in choices.items():
        words += [flag, ",".join(dict.fromkeys(values))]
    for variant in variants.values():
        for assignment in variant.sets:
            words += ["--method-set", f"{variant.label}:{assignment}"]
    tuned = ["--tune"] if any(cell.rate is not None for cell in cells) else []
    return [*words, *tuned, *budget.options]


def _subtitle(table: Table) -> str:
    methods, blocks, sparsities = ({getattr(row, key) for row in table.rows} for key in ("method", "block", "sparsity"))
    parts = (counted(len(methods), "method"), counted(len(blocks), "block size"))
    levels = "1 sparsity" if len(sparsities) == 1 else f"{len(sparsities)} sparsities"
    return f"{', '.join((*parts, levels))}, {counted(len(table.seeds), 'seed')}; {table.steps:,} steps each"


def _headline(table: Table) -> Iterator[Headline]:
    better = "higher" if table.higher_is_better else "lower"
    yield Headline(f"dense {printable(table.metric)} ({better} is better)", metric_text(table.dense))
    failures = Counter(failure.text for row in table.rows for failure in row.failures)
    done = sum(len(row.results) for row in table.rows)
    wrong = ", ".join(f"{count} {text}" for text, count in failures.items())
    yield Headline("runs with a result", f"{done} of {done + failures.total()}", wrong, "bad" if wrong else "")
    if table.multiply_adds is not None:
        yield Headline("dense multiply-adds of an example", count_text(table.multiply_adds))
    yield Headline("dense weights", size_text(table.bytes_dense))


def _dense_line(table: Table) -> Line:
    work = Cost(table.multiply_adds, "–" if table.multiply_adds is None else count_text(table.multiply_adds))
    size = Cost(table.bytes_dense, size_text(table.bytes_dense))
    return Line("dense", "–", None, table.dense, metric_text(table.dense), "", False, None, work, size)


def _line(row: Row, table: Table) -> Line:
    work, size = row.average("kept_multiply_adds"), row.average("bytes_sparse")
    return Line(
        method=row.method,
        block=by_text(row.block),
        sparsity=row.sparsity,
        value=row.mean,
        text=value_text(row),
        values=", ".join(metric_text(value) for value in row.values) if len(row.values) > 1 else "",
        is_best=row.is_best,
        zeros=row.average("sparsity"),
        multiply_adds=Cost(
            None if work is None else round(work),
            "–" if work is None else count_text(round(work)),
            "" if work is None or table.multiply_adds is None else times_fewer(table.multiply_adds, work),
        ),
        size=Cost(
            None if size is None else round(size),
            "–" if size is None else size_text(round(size)),
            "" if size is None else times_smaller(table.bytes_dense, size),
        ),
    )


def _fronts(table: Table) -> Iterator[str]:
    """The rows on the front by size, and on the one by multiply-adds, the cheapest first."""
    for key, name, written in (
        ("bytes_sparse", "size", size_text),
        ("kept_multiply_adds", "multiply-adds", count_text),
    ):
        rows = [
            f"{row.method} {by_text(row.block)} at {percent(row.sparsity)} ({metric_text(mean)}, {written(round(cost))})"
            for cost, mean, row in front(table, key)
        ]
        if rows:
            yield f"By {name}: {', '.join(rows)}."


def _plot(plots: Mapping[str, bytes], name: str, title: str, text: str, lines: tuple[str, ...] = ()) -> Plot:
    svg = themed(plots[f"{name}.svg"].decode(), name, title, text, VARIABLES)
    return Plot(Markup(svg), LEAST_PIXELS, lines)  # matplotlib has escaped every text in it
