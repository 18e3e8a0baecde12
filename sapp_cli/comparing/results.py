"""What the cells of a comparison came to, read from their outputs, and which method is ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.comparing.cells import Cell, Record, Store
from sapp_cli.comparing.table import Failure, Result, Row, Table
from sapp_cli.errors import SappError, UsageError
from sapp_cli.report.run import RunMetric, read_run


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
    rates = {cell.place: cell.rate for cell in cells}
    seeds_of: dict[tuple[str, str, float], dict[int, Result | Failure]] = {}
    for cell, outcome in found.items():
        seeds_of.setdefault((cell.variant.label, cell.block, cell.sparsity), {})[cell.seed] = outcome
    rows = [
        Row(
            *place,
            {seed: result for seed, result in of_seed.items() if isinstance(result, Result)},
            tuple(failure for failure in of_seed.values() if isinstance(failure, Failure)),
            rate=rates[place],
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
