"""The table of a comparison: means and spreads over seeds, what they cost, and which method is ahead."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.comparing.cells import DIVERGED, Cell, Record, Store
from sapp_cli.errors import SappError, UsageError
from sapp_cli.report.run import RunMetric, read_run
from sapp_cli.report.wording import count_text, metric_text, percent, size_text

VERSION = 1


@dataclass(frozen=True)
class Result:
    """What a finished cell came to."""

    dense: float
    pruned: float
    higher_is_better: bool
    steps: int
    sparsity: float  # of all prunable weights
    bytes_dense: int
    bytes_sparse: int
    multiply_adds: int | None  # of an example; None: not known
    kept_multiply_adds: int | None


@dataclass(frozen=True)
class Failure:
    """A cell that has no result."""

    seed: int
    exit_code: int | None  # None: not run
    error: str

    @property
    def text(self) -> str:
        if self.exit_code == DIVERGED:
            return "diverged"
        return "not run" if self.exit_code is None else f"exit code {self.exit_code}"


@dataclass(frozen=True)
class Row:
    """One method at one block size and sparsity, over all seeds."""

    method: str  # its label
    block: str
    sparsity: float  # as asked for
    results: Mapping[int, Result]  # by seed
    failures: tuple[Failure, ...]
    is_best: bool = False

    @property
    def values(self) -> list[float]:
        return [result.pruned for result in self.results.values()]

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.results else None

    @property
    def std(self) -> float | None:
        """Over seeds, n − 1 in the denominator; None of fewer than two."""
        return stdev(self.values) if len(self.results) > 1 else None

    def average(self, key: str) -> float | None:
        """The mean of a figure of the results; None where one of them does not have it."""
        figures = [getattr(result, key) for result in self.results.values()]
        return fmean(figures) if figures and None not in figures else None

    def as_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "block": self.block,
            "sparsity": self.sparsity,
            "values": {str(seed): result.pruned for seed, result in self.results.items()},
            "mean": self.mean,
            "std": self.std,
            "best": self.is_best,
            "prunable_sparsity": self.average("sparsity"),
            "bytes_sparse": _whole(self.average("bytes_sparse")),
            "kept_multiply_adds": _whole(self.average("kept_multiply_adds")),
            "failures": [vars(failure) for failure in self.failures],
        }


@dataclass(frozen=True)
class Table:
    """The whole comparison."""

    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    steps: int
    dense: float
    bytes_dense: int
    multiply_adds: int | None
    rows: tuple[Row, ...]

    @property
    def groups(self) -> list[tuple[str, float, list[Row]]]:
        """(block, sparsity, the methods' rows), in the order of the command line."""
        grouped = groupby(self.rows, key=lambda row: (row.block, row.sparsity))
        return [(block, sparsity, list(rows)) for (block, sparsity), rows in grouped]

    @property
    def footer(self) -> list[str]:
        """What has to be known to read the table."""
        better = "higher" if self.higher_is_better else "lower"
        count = len(self.seeds)
        spread = (
            f"mean ± standard deviation of {count} seeds"
            if count > 1
            else "one seed, hence no spread and no best method"
        )
        lines = [f"{self.metric}, {better} is better; {spread}; {self.steps:,} steps each."]
        if count > 1:
            lines.append("*: ahead of every other method by more than the two's pooled standard deviation.")
        for row in self.rows:
            lines += [
                f"{row.method}, {row.block}, {percent(row.sparsity)}, seed {failure.seed}: {failure.text}"
                + (f": {failure.error.splitlines()[0]}" if failure.error else "")
                for failure in row.failures
            ]
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "seeds": list(self.seeds),
            "steps": self.steps,
            "dense": {"value": self.dense, "bytes": self.bytes_dense, "multiply_adds": self.multiply_adds},
            "rows": [row.as_json() for row in self.rows],
        }

    def as_csv(self) -> str:
        """One line a row of the table, the dense network first; values of the seeds with spaces between them."""
        keys = ("method", "block", "sparsity", "mean", "std", "best", "values", "failed_seeds")
        costs = ("prunable_sparsity", "bytes", "multiply_adds")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*keys, *costs])
        writer.writerow(
            ["dense", "", "", self.dense, "", "", "", "", "", self.bytes_dense, _or_empty(self.multiply_adds)]
        )
        for row in self.rows:
            values = " ".join(map(repr, row.values))
            failed = " ".join(str(failure.seed) for failure in row.failures)
            figures = [row.average("sparsity"), _whole(row.average("bytes_sparse"))]
            figures.append(_whole(row.average("kept_multiply_adds")))
            cells = [row.method, row.block, row.sparsity, row.mean, row.std, str(row.is_best).lower(), values, failed]
            writer.writerow([_or_empty(cell) for cell in [*cells, *figures]])
        return text.getvalue()

    def as_markdown(self) -> str:
        """A table for a pull request or a paper's notes; the best in bold."""
        lines = [f"| block | sparsity | method | {self.metric} | mult-adds | size |", "|---|---:|---|---:|---:|---:|"]
        for block, sparsity, method, value, work, size, is_best in self.lines():
            shown = f"**{value}**" if is_best else value
            lines.append(f"| {block} | {sparsity} | {method} | {shown} | {work} | {size} |")
        notes = [line.replace("*: ", "Bold: ") for line in self.footer]
        return "\n".join([*lines, "", *notes]) + "\n"

    def lines(self) -> Iterable[tuple[str, str, str, str, str, str, bool]]:
        """Block, sparsity, method, metric, multiply-adds, size, best: as text, what repeats left out."""
        yield "", "", "dense", metric_text(self.dense), _count(self.multiply_adds), size_text(self.bytes_dense), False
        before = ""
        for block, sparsity, rows in self.groups:
            for index, row in enumerate(rows):
                first = index == 0
                size = row.average("bytes_sparse")
                yield (
                    by_text(block) if first and block != before else "",
                    percent(sparsity) if first else "",
                    row.method,
                    value_text(row),
                    _count(row.average("kept_multiply_adds")),
                    "–" if size is None else size_text(round(size)),
                    row.is_best,
                )
            before = block


def make_table(cells: Sequence[Cell], store: Store, metric: str | None) -> Table:
    """The table over whatever the cells have come to so far, judged by `metric` (None: the first of the runs).

    Raises UsageError for a metric that the runs do not have, and the error of the first cell where none has a result.
    """
    found: dict[Cell, Result | Failure] = {}
    for cell in cells:
        record = store.record(cell)
        found[cell] = _read(store, cell, record, metric) if record and record.exit_code == 0 else _failure(cell, record)
    results = [result for result in found.values() if isinstance(result, Result)]
    if not results:
        failure = next(failure for failure in found.values() if isinstance(failure, Failure))
        raise _NoResult(failure)
    name = metric or next(iter(_metrics(store, next(cell for cell in cells if isinstance(found[cell], Result)))))
    first = results[0]
    seeds_of: dict[tuple[str, str, float], dict[int, Result | Failure]] = {}
    for cell, outcome in found.items():
        seeds_of.setdefault((cell.variant.label, cell.block, cell.sparsity), {})[cell.seed] = outcome
    rows = [
        Row(
            *place,
            {seed: result for seed, result in of_seed.items() if isinstance(result, Result)},
            tuple(failure for failure in of_seed.values() if isinstance(failure, Failure)),
        )
        for place, of_seed in seeds_of.items()
    ]
    return Table(
        metric=name,
        higher_is_better=first.higher_is_better,
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
        steps=first.steps,
        dense=first.dense,
        bytes_dense=first.bytes_dense,
        multiply_adds=first.multiply_adds,
        rows=tuple(with_best(rows, first.higher_is_better)),
    )


def with_best(rows: Sequence[Row], higher_is_better: bool) -> list[Row]:
    """The rows, in each group of one block size and sparsity the best marked, if it is ahead by more than the spread.

    Ahead means: of every other method with a result, by more than the pooled standard deviation √((s₁² + s₂²)/2) of the two. A
    row with a failed seed, or with a single one, is never the best.
    """
    marked = []
    for _, group in groupby(rows, key=lambda row: (row.block, row.sparsity)):
        same = list(group)
        sign = 1 if higher_is_better else -1
        whole = [row for row in same if row.mean is not None and row.std is not None and not row.failures]
        best = max(whole, key=lambda row: sign * (row.mean or 0.0), default=None)
        others = [row for row in same if row is not best and row.mean is not None]
        ahead = best is not None and bool(others) and all(_ahead(best, other, sign) for other in others)
        marked += [replace(row, is_best=True) if ahead and row is best else row for row in same]
    return marked


def value_text(row: Row) -> str:
    """Like "0.9611 ± 0.0021"; what went wrong where there is no value, or not one of each seed."""
    if row.mean is None:
        return row.failures[0].text
    text = metric_text(row.mean)
    if row.std is not None:
        spread = metric_text(row.std) if "e" in text else f"{row.std:.4f}"  # as many decimals as the mean has
        text += f" ± {spread}"
    if row.failures:
        text += f" ({len(row.failures)} {row.failures[0].text})"
    return text


def by_text(block: str) -> str:
    """The sides of "16" and "16x32" as "16×16" and "16×32"."""
    sides = block.split("x")
    return "×".join(sides * 2 if len(sides) == 1 else sides)


class _NoResult(SappError):
    """No cell has a result; ends with the exit code of the first failure."""

    def __init__(self, failure: Failure) -> None:
        self.exit_code = failure.exit_code or 1
        super().__init__(f"no cell has a result; the first one: {failure.text}: {failure.error}")


def _ahead(best: Row, other: Row, sign: int) -> bool:
    assert best.mean is not None and best.std is not None and other.mean is not None, "chosen for having them"
    spread = best.std if other.std is None else math.sqrt((best.std**2 + other.std**2) / 2)
    return sign * (best.mean - other.mean) > spread


def _failure(cell: Cell, record: Record | None) -> Failure:
    return Failure(cell.seed, record.exit_code if record else None, record.error if record else "")


def _metrics(store: Store, cell: Cell) -> Mapping[str, Any]:
    run = read_run(store.out(cell))
    return run.metrics if run else {}


def _read(store: Store, cell: Cell, record: Record, metric: str | None) -> Result | Failure:
    out = store.out(cell)
    run = read_run(out)
    if run is None:  # somebody removed it
        return Failure(cell.seed, None, "")
    _, value = chosen_metric(run.metrics, metric)
    path = out / "sparsity.json"
    model = read_object(path, "the sparsity report", CONFIG_LIMIT).get("model")
    if not isinstance(model, dict):
        raise damaged(path, "is not a sparsity report of sapp: it has no totals")
    return Result(
        dense=value.dense,
        pruned=value.pruned,
        higher_is_better=value.higher_is_better,
        steps=run.steps,
        sparsity=model["prunable_sparsity"],
        bytes_dense=model["bytes_dense"],
        bytes_sparse=model["bytes_sparse"],
        multiply_adds=model.get("multiply_adds"),
        kept_multiply_adds=model.get("kept_multiply_adds"),
    )


def chosen_metric(metrics: Mapping[str, RunMetric], metric: str | None) -> tuple[str, RunMetric]:
    """The metric of a run to compare by, its first where none is named. Raises UsageError for one that it does not have."""
    name = metric or next(iter(metrics))
    if name not in metrics:
        raise UsageError(f"--metric {name}: the runs have {', '.join(metrics)}")
    return name, metrics[name]


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _count(value: float | None) -> str:
    return "–" if value is None else count_text(round(value))
