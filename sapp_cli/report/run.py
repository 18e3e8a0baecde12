"""What a run left behind beside its weights: manifest.json and metrics.jsonl, as far as a report shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, parse_object, read_object
from sapp_cli.checkpoint.output import MANIFEST, is_output
from sapp_cli.checkpoint.source import Checkpoint

METRICS_FILE = "metrics.jsonl"
LOG_LIMIT = 256_000_000


@dataclass(frozen=True)
class RunMetric:
    """A metric before and after."""

    dense: float
    pruned: float
    higher_is_better: bool

    @property
    def drop(self) -> float:
        """How much worse it became, absolute; negative where it improved."""
        return self.dense - self.pruned if self.higher_is_better else self.pruned - self.dense


@dataclass(frozen=True)
class RunPhase:
    """A phase of the timetable, its steps counted from 1."""

    phase: str
    round: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class RunRecord:
    """A run, read back from its folder. What the folder does not say is empty."""

    method: str
    steps: int
    sapp_version: str
    metrics: Mapping[str, RunMetric]  # the first is the one that `check --max-drop` looks at
    phases: tuple[RunPhase, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)  # file -> SHA-256
    sparsity: tuple[tuple[int, float], ...] = ()  # (step, share of blocks removed), as logged
    loss: tuple[tuple[int, float], ...] = ()
    evaluations: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)

    @property
    def shown_evaluations(self) -> list[str]:
        """The metrics that a drawing of the run has room for, beside the loss."""
        return [name for name, points in self.evaluations.items() if points and name != "loss"][:2]


def home_of(checkpoint: Checkpoint) -> Path | None:
    """The output folder that a checkpoint's files belong to; where there is none, the folder it knows of, if any.

    An output's weights may be named by themselves (OUT/sparse, OUT/model.safetensors): the manifest says that they are its.
    """
    files = [file.path.absolute() for file in checkpoint.files]
    for folder in (files[0].parent, files[0].parent.parent):
        path = folder / MANIFEST
        if is_output(folder):
            outputs = _object(path, read_object(path, "the manifest", CONFIG_LIMIT), "outputs")
            if all(file.is_relative_to(folder) and file.relative_to(folder).as_posix() in outputs for file in files):
                return folder
    return checkpoint.folder


def read_run(folder: Path | None) -> RunRecord | None:
    """The run that wrote this folder; None without a manifest of sapp. Raises CheckpointError for damaged records."""
    if folder is None or not (folder / MANIFEST).is_file():
        return None
    path = folder / MANIFEST
    manifest = read_object(path, "the manifest", CONFIG_LIMIT)
    if not isinstance(manifest.get("sapp_version"), str):
        return None  # of some other program
    log = _read_log(folder / METRICS_FILE)
    names = dict.fromkeys(name for record in log for name in record.get("metrics", {}))
    return RunRecord(
        method=str(manifest.get("method", "")),
        steps=_integer(path, manifest.get("steps", 0), "steps"),
        sapp_version=manifest["sapp_version"],
        metrics={name: _metric(path, name, value) for name, value in _object(path, manifest, "metrics").items()},
        phases=tuple(_phase(path, phase) for phase in _list(path, manifest, "phases")),
        outputs={file: str(digest) for file, digest in _object(path, manifest, "outputs").items()},
        sparsity=_curve(log, lambda record: record.get("sparsity")),
        loss=_curve(log, lambda record: record.get("loss")),
        evaluations={name: _curve(log, lambda record: record.get("metrics", {}).get(name)) for name in names},  # noqa: B023
    )


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    if path.stat().st_size > LOG_LIMIT:
        raise damaged(path, f"has more than {LOG_LIMIT:,} bytes")
    with path.open("rb") as file:
        records = [parse_object(line, path, f"line {number}") for number, line in enumerate(file, 1) if line.strip()]
    for number, record in enumerate(records, 1):
        if type(record.get("step")) is not int or not isinstance(record.get("metrics", {}), dict):
            raise damaged(path, f"line {number} is no record of a step")
    return records


def _curve(log: list[dict[str, Any]], value_of: Any) -> tuple[tuple[int, float], ...]:
    """(step, value) of every record that has a finite one."""
    points = ((record["step"], value_of(record)) for record in log)
    return tuple((step, float(value)) for step, value in points if _is_number(value) and math.isfinite(value))


def _metric(path: Path, name: str, value: Any) -> RunMetric:
    if not isinstance(value, dict) or not all(_is_number(value.get(key)) for key in ("dense", "pruned")):
        raise damaged(path, f"metric '{name}' has no numbers 'dense' and 'pruned'")
    return RunMetric(float(value["dense"]), float(value["pruned"]), bool(value.get("higher_is_better", False)))


def _phase(path: Path, value: Any) -> RunPhase:
    if not isinstance(value, dict) or not isinstance(value.get("phase"), str):
        raise damaged(path, "a phase has no name")
    numbers = (_integer(path, value.get(key), f"a phase's {key}") for key in ("round", "first_step", "last_step"))
    return RunPhase(value["phase"], *numbers)


def _object(path: Path, manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = manifest.get(key, {})
    if not isinstance(value, dict):
        raise damaged(path, f"'{key}' is not a JSON object")
    return value


def _list(path: Path, manifest: Mapping[str, Any], key: str) -> list[Any]:
    value = manifest.get(key, [])
    if not isinstance(value, list):
        raise damaged(path, f"'{key}' is not a list")
    return value


def _integer(path: Path, value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise damaged(path, f"{what} is not a count")
    return value


def _is_number(value: Any) -> bool:
    """Also NaN and inf, as Python writes them; not an integer that no float can hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
