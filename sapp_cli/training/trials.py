"""trials.json: the finished trials of a search, so that an interrupted one does not repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import write_json
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.errors import CheckpointError, UsageError
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.keeper import require_same
from sapp_cli.training.rate_search import Trial
from sapp_cli.training.run_state import RunFolder

VERSION = 1


class TrialRecord(BaseModel):
    """A finished trial."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1)]
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    error: str = ""
    loss: Annotated[float, Field(allow_inf_nan=False)] | None = None


class SearchRecord(BaseModel):
    """All of trials.json."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    recipe: Recipe
    inputs: dict[str, str]  # {file: SHA-256}
    processes: str
    trials: list[TrialRecord] = []

    def as_json(self) -> dict[str, Any]:
        return {**self.model_dump(exclude={"recipe"}), "recipe": self.recipe.model_dump(mode="json")}


@dataclass
class TrialBook:
    """The finished trials of one search, on disk as well if it has a folder; rank 0 keeps it."""

    folder: RunFolder | None = None
    record: SearchRecord | None = None
    done: dict[tuple[float, int], Trial] = field(default_factory=dict)  # by rate and steps

    def add(self, trial: Trial) -> None:
        """Note a trial. Raises ResourceError if the disk does not take it."""
        self.done[trial.rate, trial.steps] = trial
        if self.folder is None or self.record is None:
            return
        noted = [TrialRecord(**vars(each)) for each in self.done.values()]
        with disk_errors(self.folder.path.parent):
            self.folder.path.mkdir(parents=True, exist_ok=True)
            write_json(self.folder.trials, self.record.model_copy(update={"trials": noted}).as_json())


def open_book(
    folder: RunFolder, recipe: Recipe, inputs: Mapping[str, str], processes: str, *, resume: bool
) -> TrialBook:
    """The trials in the folder, none for a fresh start.

    Raises UsageError if the recipe, the input or the number of processes changed since, CheckpointError for a damaged file.
    """
    record = SearchRecord(recipe=recipe, inputs=dict(inputs), processes=processes)
    before = read_trials(folder) if resume else None
    if before is None:
        return TrialBook(folder, record)
    require_same(folder, before, recipe, inputs, processes)
    return TrialBook(folder, record, {(each.rate, each.steps): Trial(**each.model_dump()) for each in before.trials})


def read_trials(folder: RunFolder) -> SearchRecord | None:
    """The record in the folder; None if there is none. Raises CheckpointError for everything else that lies in its place."""
    path = folder.trials
    if not path.exists():
        return None
    try:
        return SearchRecord.model_validate(read_object(path, "the record of the trials", CONFIG_LIMIT))
    except (ValidationError, CheckpointError) as error:
        raise CheckpointError(
            f"{path}: the record of the trials is damaged; remove {folder.path} to start anew"
        ) from error


def require_none_left(folder: RunFolder) -> None:
    """Raise UsageError if an interrupted run left a state or trials, which --resume or --overwrite decides about."""
    state = folder.latest()
    if state is not None or folder.trials.exists():
        record = None if state else read_trials(folder)
        done = f"{state.step} steps" if state else f"{len(record.trials) if record else 0} trials"
        raise UsageError(
            f"{folder.path}: holds an interrupted run, {done} done; --resume goes on with it, --overwrite starts anew"
        )
