"""manifest.json: what went in, what came out, with which versions; enough to check an output and to repeat it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sapp_cli._version import __version__
from sapp_cli.core.schedule import PhaseSchedule

VERSION = 1
PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "transformers", "datasets")


@dataclass(frozen=True)
class Metric:
    """A metric before and after."""

    dense: float
    pruned: float
    higher_is_better: bool

    def as_json(self) -> dict[str, Any]:
        return {"dense": self.dense, "pruned": self.pruned, "higher_is_better": self.higher_is_better}


@dataclass(frozen=True)
class Manifest:
    """The document of manifest.json. Hashes are SHA-256; paths are relative to the input and to OUT."""

    method: str
    seed: int
    steps: int
    phases: PhaseSchedule
    inputs: Mapping[str, str]  # file -> hash
    outputs: Mapping[str, str]
    recipe_sha256: str
    masks_sha256: str
    metrics: Mapping[str, Metric]  # the first is the one that `check --max-drop` looks at
    seconds: Mapping[str, float]  # training and the whole
    threads: int  # of torch on a CPU: sums in another order are other bits
    block_costs: Mapping[str, Mapping[str, int]] | None = None  # {pruned layer: {budget: what one block takes of it}}
    search: Mapping[str, Any] | None = None  # of the learning rate, if the recipe has `auto`

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "sapp_version": __version__,
            "method": self.method,
            "seed": self.seed,
            "steps": self.steps,
            "phases": phases_json(self.phases),
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "recipe_sha256": self.recipe_sha256,
            "masks_sha256": self.masks_sha256,
            "metrics": {name: metric.as_json() for name, metric in self.metrics.items()},
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "versions": {"python": platform.python_version(), **_versions()},
            "platform": platform.platform(),
            "threads": self.threads,
            **({} if self.search is None else {"search": dict(self.search)}),
            **(
                {}
                if self.block_costs is None
                else {"block_costs": {name: dict(costs) for name, costs in self.block_costs.items()}}
            ),
        }


def phases_json(schedule: PhaseSchedule) -> list[dict[str, Any]]:
    """The timetable in steps: phase, round, first step (from 1) and last."""
    return [
        {"phase": phase.phase.value, "round": phase.round, "first_step": phase.start + 1, "last_step": phase.stop}
        for phase in schedule.phases
    ]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
