"""The table of a comparison: means and spreads over seeds, and what they cost, as text, CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from sapp_cli.comparing.cells import DIVERGED
from sapp_cli.report.texts import csv_text, markdown_text
from sapp_cli.report.wording import count_text, metric_text, percent, size_text
from sapp_cli.training.rate_search import rate_text

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
    rate: float | None = None  # that `--tune` found

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
            **({} if self.rate is None else {"learning_rate": self.rate}),
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
        lines += self._rates
        for row in self.rows:
            lines += [
                f"{row.method}, {row.block}, {percent(row.sparsity)}, seed {failure.seed}: {failure.text}"
                + (f": {failure.error.splitlines()[0]}" if failure.error else "")
                for failure in row.failures
            ]
        return lines

    @property
    def _rates(self) -> list[str]:
        """A line for each block size and sparsity, if the rates were searched."""
        lines = []
        for block, sparsity, rows in self.groups:
            found = ", ".join(f"{row.method} {rate_text(row.rate)}" for row in rows if row.rate is not None)
            if found:
                lines.append(f"learning rates found alike for all, {by_text(block)}, {percent(sparsity)}: {found}.")
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
            cells = [
                csv_text(row.method),
                row.block,
                row.sparsity,
                row.mean,
                row.std,
                str(row.is_best).lower(),
                values,
                failed,
            ]
            writer.writerow([_or_empty(cell) for cell in [*cells, *figures]])
        return text.getvalue()

    def as_markdown(self) -> str:
        """A table for a pull request or a paper's notes; the best in bold."""
        lines = [
            f"| block | sparsity | method | {markdown_text(self.metric)} | mult-adds | size |",
            "|---|---:|---|---:|---:|---:|",
        ]
        for block, sparsity, method, value, work, size, is_best in self.lines():
            shown = f"**{value}**" if is_best else value
            lines.append(f"| {block} | {sparsity} | {method} | {shown} | {work} | {size} |")
        notes = [markdown_text(line.replace("*: ", "Bold: ")) for line in self.footer]
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


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _count(value: float | None) -> str:
    return "–" if value is None else count_text(round(value))
