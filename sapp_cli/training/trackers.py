"""Whoever watches a run from outside: TensorBoard and Weights & Biases, through Accelerate, beside metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from sapp_cli.core.schedule import Phase
from sapp_cli.errors import SettingError
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.loop import StepRecord

PHASES = {Phase.DENSE: 0, Phase.SPARSIFICATION: 1, Phase.SPARSE: 2}
"""A phase as a number, for those who draw curves."""


def require_packages(trackers: Sequence[str]) -> None:
    """Raise SettingError for a tracker whose package is not installed."""
    missing = [name for name in trackers if find_spec(name) is None]
    if missing:
        problem = f"{missing[0]} needs its package: pip install 'sapp-cli[trackers]'"
        raise SettingError([("train.trackers", problem)])


@contextmanager
def tracked(
    accelerator: Accelerator, trackers: Sequence[str | GeneralTracker], recipe: Recipe, out: Path, pruner: Pruner
) -> Iterator[Trackers]:
    """The trackers of a run that writes `out`; their files go into OUT.trackers beside it. All processes take part."""
    folder = out.expanduser().absolute()
    folder = folder.with_name(f"{folder.name}.trackers")
    accelerator.log_with = list(trackers)
    if trackers:
        accelerator.project_configuration.set_directories(str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        settings = dict(_scalars(recipe.model_dump(mode="json")))
        accelerator.init_trackers("sapp", settings, {"wandb": {"name": out.name, "dir": str(folder)}})
    try:
        yield Trackers(accelerator, pruner, recipe.train.log_every)
    finally:
        if trackers:
            for tracker in accelerator.trackers:
                tracker.finish()


class Trackers:
    """Tells all trackers what metrics.jsonl has, and more of every layer; steps count as there."""

    def __init__(self, accelerator: Accelerator, pruner: Pruner, every: int) -> None:
        self._accelerator = accelerator
        self._pruner = pruner
        self._every = every

    def step(self, record: StepRecord) -> None:
        """A finished step, where metrics.jsonl has one too; every process must call it."""
        if self._accelerator.log_with and record.is_logged(self._every):
            self._accelerator.log({**_of_step(record), **self._of_layers()}, step=record.moment.step + 1)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation on all validation rows; the main process calls it."""
        if self._accelerator.log_with:
            self._accelerator.log({f"metrics/{name}": value for name, value in metrics.items()}, step=step)

    def _of_layers(self) -> dict[str, float]:
        values = {f"sparsity/{stored}": share for stored, share in self._pruner.sparsities.items()}
        for name, (low, high) in self._pruner.attention_ranges().items():
            stored = self._pruner.attached[name].layer.stored
            values |= {f"attention_min/{stored}": low, f"attention_max/{stored}": high}
        return values


def _of_step(record: StepRecord) -> dict[str, float]:
    values = {
        "loss": record.loss,
        **{f"loss/{name}": part for name, part in record.parts.items()},
        "learning_rate": record.learning_rate,
        "phase": PHASES[record.moment.phase],
        "round": record.moment.round,
        "sparsity": record.sparsity,
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
    }
    return values if record.exchanged is None else {**values, "exchanged": record.exchanged}


def _scalars(value: Any, path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """(dotted key, value) of everything in nested mappings; lists as JSON."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _scalars(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str | int | float | bool) else json.dumps(value)
