"""When the state of a run is saved, and whether a saved one may be gone on from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.checkpoint.write import synced_size
from sapp_cli.errors import UsageError
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe, TrainSection, comparable
from sapp_cli.training.processes import is_main
from sapp_cli.training.run_record import DenseStartRecord, RankingRecord, StateRecord
from sapp_cli.training.run_state import RunFolder, SavedState, collect, restore
from sapp_cli.training.sharding import hand_over, is_sharded, put_together
from sapp_cli.training.sparse_phases import SparsePhases

FREE_TO_CHANGE = frozenset(
    {
        "train.save_minutes",
        "train.save_steps",
        "train.log_every",
        "train.stop_on_collapse",
        "train.stop_on_cut_off",
        "train.trackers",
        "data.workers",
    }
)
"""Recipe keys that do not change what a run computes."""


LAST_STATE_SECONDS = 60


@dataclass
class Keeper:
    """Saves a run's state every so many steps or minutes, and puts the last one back."""

    folder: RunFolder
    settings: TrainSection
    record: StateRecord  # what a later run is compared with, and starts from; time, log and layers are filled in as it is saved
    resumed: SavedState | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps_done(self) -> int:
        return self.resumed.step if self.resumed else 0

    @property
    def seconds_before(self) -> float:
        """Training time of the run up to the state that it goes on from."""
        return self.resumed.record.seconds if self.resumed else 0.0

    def restore(
        self,
        model: nn.Module,
        pruner: Pruner,
        phases: SparsePhases,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        """Put the resumed state back, if there is one."""
        if self.resumed is not None:
            restore(self.resumed, model, pruner, phases, optimizer, accelerator)

    def is_due(self, steps_done: int, last: bool) -> bool:
        """True where the recipe asks for a state after so many steps, and after the last one of more than a moment's work."""
        if last:  # whatever happens to the export, a full disk say, must not cost the training
            return time.monotonic() - self._saved_at >= LAST_STATE_SECONDS
        if self.settings.save_steps is not None:
            return steps_done % self.settings.save_steps == 0
        return time.monotonic() - self._saved_at >= 60 * self.settings.save_minutes

    def save(
        self,
        steps_done: int,
        seconds: float,
        model: nn.Module,
        pruner: Pruner,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        """Write the state after `steps_done` steps and `seconds` of training: the main process; all come back together."""
        tensors = collect(model, pruner, optimizer, accelerator)
        if is_main():
            now = {
                "seconds": seconds,
                "log_bytes": synced_size(self.folder.log),
                "ranking": RankingRecord(**asdict(pruner.ranking)),
                "dense_start": DenseStartRecord(**asdict(pruner.dense_start)),
                "kept_blocks": [name for name, layer in pruner.attached.items() if layer.masked.kept is not None],
            }
            with put_together(tensors, is_sharded(model)) as entries:
                self.folder.save(steps_done, tensors, entries, self.record.model_copy(update=now))
        else:
            hand_over(tensors)
        self._saved_at = time.monotonic()


def open_run(
    folder: RunFolder, recipe: Recipe, inputs: Mapping[str, str], processes: str, *, resume: bool, anew: bool
) -> SavedState | None:
    """The state to go on from, None for a fresh start; `anew` throws an old state away.

    Raises UsageError if there is a state and neither was asked for, or if the recipe, the input or the number of
    processes changed since.
    """
    if anew and not resume:
        folder.remove()
    state = folder.latest()
    if state is None:
        return None
    if not resume:
        raise UsageError(
            f"{folder.path}: holds an interrupted run, {state.step} steps done; --resume goes on with it, "
            "--overwrite starts anew"
        )
    require_same(folder, state.record, recipe, inputs, processes)
    return state


class Began(Protocol):
    """What a run, or the search before it, began with."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def inputs(self) -> Mapping[str, str]: ...

    @property
    def processes(self) -> str: ...


def require_same(folder: RunFolder, began: Began, recipe: Recipe, inputs: Mapping[str, str], processes: str) -> None:
    """Raise UsageError, with everything that changed since, unless the run began with the same."""
    then, now = (dict(_leaves(comparable(settings))) for settings in (began.recipe, recipe))
    changed = [
        f"  {key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    changed += _changed_inputs(began.inputs, inputs)
    if began.processes != processes:
        changed.append(f"  processes: {began.processes!r} then, {processes!r} now")
    if changed:
        raise UsageError(
            f"{folder.path}: cannot go on with the interrupted run, for this changed since; "
            "change it back, or start anew with --overwrite:\n" + "\n".join(changed)
        )


def _changed_inputs(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A line for each file that is another one, and for each package of another version."""
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            yield f"  {name}: a file that the run began with, and is gone"
        elif name not in then:
            yield f"  {name}: a file that was not there when the run began"
        elif then[name] != now[name]:
            versions = " " in now[name]  # hashes have none
            yield (
                f"  {name}: {then[name]!r} then, {now[name]!r} now"
                if versions
                else f"  {name}: changed since the run began"
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings; lists are values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
