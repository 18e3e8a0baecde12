"""The gates of `sapp check`: each looks at one thing and says its figure, met or not.

Gates on figures (sparsity, size, drop) are asked for; those on integrity (integrity.py) always look, where they apply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from sapp_cli.errors import GateError
from sapp_cli.report.run import RunRecord
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.texts import targeted_text
from sapp_cli.report.wording import counted, metric_text, percent, printable, size_text

VERSION = 1
Outcome = Literal["met", "not met", "does not apply"]
Weights = Literal["prunable", "pruned", "model"]


@dataclass(frozen=True)
class Gate:
    """What came of a gate. `text` has the figure, what was asked, and what is wrong."""

    name: str
    outcome: Outcome
    text: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class CheckResult:
    """All gates of a checkpoint."""

    path: str
    gates: tuple[Gate, ...]
    notes: tuple[str, ...] = ()  # what no gate on sparsity counts

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if gate.outcome == "not met")

    def as_json(self) -> dict[str, Any]:
        """The document of `check --json`."""
        gates = [asdict(gate) for gate in self.gates]
        return {"version": VERSION, "path": self.path, "met": not self.failed, "gates": gates}

    def raise_if_failed(self) -> None:
        """Raise GateError with a line for each gate that was not met."""
        if self.failed:
            raise GateError("\n".join(f"{self.path}: {gate.name}: {gate.text}" for gate in self.failed))


def check_sparsity(report: SparsityReport, least: float, of: Weights) -> Gate:
    """At least this share of zeros in the prunable weights or the model, or of removed blocks in the pruned layers."""
    shares = {
        "prunable": (report.model.prunable_sparsity, "of all prunable weights are zero"),
        "pruned": (
            report.pruned_block_sparsity,
            f"of the blocks of {targeted_text(report)} are removed",
        ),
        "model": (report.model.sparsity, "of the whole model is zero"),
    }
    share, what = shares[of]
    others = "; ".join(f"{percent(value)} {text}" for key, (value, text) in shares.items() if key != of)
    text = f"{percent(share)} {what}, at least {_asked_percent(least)} asked ({others})"
    return Gate("min-sparsity", _outcome(share >= least), text, share, least)


def check_size(files: Sequence[Path], limit: int, layout: str) -> Gate:
    """Weight files of at most this many bytes."""
    size = sum(file.stat().st_size for file in files)
    where = f"{counted(len(files), 'file')} of {layout} weights"
    text = f"{size_text(size)} ({size:,} bytes) in {where}, at most {size_text(limit)} asked"
    return Gate("max-size", _outcome(size <= limit), text, size, limit)


def check_drop(run: RunRecord | None, limit: float, name: str | None) -> Gate:
    """A metric of the run that became worse by at most this much, absolute. Without such a metric the gate is not met."""
    if run is None or not run.metrics:
        return Gate(
            "max-drop", "not met", "there are no metrics to judge by: no manifest.json of sapp with them", None, limit
        )
    name = name or next(iter(run.metrics))
    metric = run.metrics.get(name)
    if metric is None:
        known = ", ".join(map(printable, run.metrics))
        return Gate(
            "max-drop", "not met", f"manifest.json has no metric '{printable(name)}', only {known}", None, limit
        )
    figures = f"{printable(name)} {metric_text(metric.dense)} → {metric_text(metric.pruned)}"
    if not math.isfinite(metric.dense) or not math.isfinite(metric.pruned):
        return Gate("max-drop", "not met", f"{figures} is not a finite number", None, limit)
    # As decimals, so that from 0.97 to 0.96 it is 0.01, and not a hair more.
    before, after = Decimal(repr(metric.dense)), Decimal(repr(metric.pruned))
    drop = before - after if metric.higher_is_better else after - before
    change = (
        f"{metric_text(float(drop))} worse"
        if drop > 0
        else f"{metric_text(float(-drop))} better"
        if drop
        else "no change"
    )
    better = "higher" if metric.higher_is_better else "lower"
    text = f"{figures} ({better} is better): {change}, at most {limit:g} worse asked"
    return Gate("max-drop", _outcome(drop <= Decimal(repr(limit))), text, float(drop), limit)


def _outcome(met: bool) -> Outcome:
    return "met" if met else "not met"


def _asked_percent(share: float) -> str:
    """What was asked, in all its digits: 0.8875 -> "88.75 %"."""
    return f"{Decimal(repr(share)) * 100:.10f}".rstrip("0").rstrip(".") + " %"
