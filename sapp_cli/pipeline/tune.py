"""The search for a learning rate, as a flow of data: what `optimizer.lr: auto` and `sapp tune` do.

All trials run in this process, one after the other. Each reads the model from the checkpoint again, so none sees what
another left, and memory is that of one run; data and objective are read once. A process for each trial would read and
tokenize the data anew and start its libraries every time.
"""

from __future__ import annotations

import copy
import gc
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from sapp_cli.checkpoint.output import check_companions, check_free_space
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.costs import see_costs
from sapp_cli.errors import Interrupted, TrainingError
from sapp_cli.inputs.data import DataSets
from sapp_cli.inputs.fingerprints import fingerprint_checkpoint, fingerprint_code, fingerprint_files
from sapp_cli.inputs.models import load_model
from sapp_cli.inputs.rows import rows_in
from sapp_cli.layers import decide_layers
from sapp_cli.pipeline.start import memory_errors, set_up
from sapp_cli.pipeline.watcher import Silence, Watcher
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.recipe.schema import Recipe, with_rate
from sapp_cli.report.wording import metric_text
from sapp_cli.runtime.heap import LARGEST_IN_TRAINING, keep_freed_memory
from sapp_cli.training.activations import checkpoint_gradients
from sapp_cli.training.device import describe_processes, make_accelerator, reproducible, shards
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.interruption import Terminated
from sapp_cli.training.loop import StepRecord, run_schedule, train
from sapp_cli.training.objectives import Objective
from sapp_cli.training.processes import from_main, is_main, joined
from sapp_cli.training.rate_search import (
    Choice,
    SearchPlan,
    Trial,
    plan_search,
    rate_text,
    search_rate,
    shortest_trial,
)
from sapp_cli.training.run_state import RunFolder
from sapp_cli.training.sharding import shard
from sapp_cli.training.trials import TrialBook, open_book, require_none_left


@dataclass(frozen=True)
class Tuned:
    """What a search came to."""

    plan: SearchPlan
    choice: Choice
    metric: str
    higher_is_better: bool

    @property
    def recipe_line(self) -> str:
        """`optimizer: {lr: 6e-4}`."""
        return f"optimizer: {{lr: {rate_text(self.choice.rate)}}}"

    def settled(self, recipe: LoadedRecipe) -> LoadedRecipe:
        """The recipe with the rate that was found."""
        return replace(recipe, recipe=with_rate(recipe.recipe, self.choice.rate))

    def as_json(self) -> dict[str, Any]:
        """`search` of the manifest, and the document of `sapp tune --json`."""
        spent = sum(trial.steps for trial in self.choice.trials)
        return {
            "learning_rate": self.choice.rate,
            "recipe": self.recipe_line,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "run_steps": self.plan.steps,
            "trial_steps": spent,
            "most_steps": self.plan.budget,
            "trials": [trial.as_json() for trial in self.choice.trials],
            "notes": list(self.choice.notes),
        }


def search_of(settings: Recipe, steps: int, rates: Sequence[float] | None = None) -> SearchPlan:
    """The plan of the search for a run of `steps` steps. Raises SettingError if the run is too short for one."""
    spans = settings.prune.settings.spans(settings.prune.timetable)
    return plan_search(steps, shortest_trial(spans), settings.optimizer.name, rates)


@located
def tune(
    recipe: LoadedRecipe, checkpoint_path: Path, watcher: Watcher, *, rates: Sequence[float] | None = None
) -> Tuned | None:
    """Search the rate for this recipe and write nothing. `rates`: the ones to try; None: the grid of the optimizer.

    Of several processes the main one speaks, the others train along and get None. Raises what `prune` raises before and
    while it trains; TrainingError if every trial diverged.
    """
    settings = recipe.recipe
    accelerator = make_accelerator(settings.train)
    with joined(), memory_errors(settings):
        watcher = watcher if is_main() else Silence()
        with reproducible(settings.train, accelerator):
            given = _read(recipe, checkpoint_path, accelerator, watcher, rates)
        tuned = _search(given, watcher, TrialBook(), "nothing was written")
        return tuned if is_main() else None


def tune_for_run(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    out: Path,
    accelerator: Accelerator,
    watcher: Watcher,
    *,
    resume: bool,
    anew: bool,
) -> Tuned:
    """The search before the run that writes OUT; with `resume`, finished trials of an interrupted one are not repeated.

    Everything random is seeded again at its end: the run is the same as one whose recipe names the rate.
    """
    settings = recipe.recipe
    folder = RunFolder(out)
    if is_main():
        if anew and not resume:
            folder.remove()
        elif not resume:
            require_none_left(folder)
    given = _read(recipe, checkpoint_path, accelerator, watcher, None)
    book = TrialBook()
    if is_main():
        if given.checkpoint.folder:
            check_companions(given.checkpoint.folder)
        check_free_space(out.parent, 2 * given.checkpoint.bytes)
        found = fingerprint_checkpoint(given.checkpoint) | fingerprint_files(settings) | fingerprint_code(settings)
        processes = describe_processes(settings.train, accelerator)
        book = open_book(folder, settings, found.values, processes, resume=resume)
    try:
        tuned = _search(given, watcher, book, "finished trials are kept; the same command with --resume goes on")
    except TrainingError:
        if is_main():
            folder.remove()  # nothing in it would help another run
        raise
    with reproducible(settings.train, accelerator):  # seeds
        return tuned


@dataclass(frozen=True)
class _Given:
    """What all trials share."""

    settings: Recipe
    accelerator: Accelerator
    checkpoint: Checkpoint
    teacher: nn.Module | None
    data: DataSets
    objective: Objective
    costs: Mapping[str, int] | None  # {layer name: multiply-adds of one of its blocks}
    plan: SearchPlan
    metric: str


def _read(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    accelerator: Accelerator,
    watcher: Watcher,
    rates: Sequence[float] | None,
) -> _Given:
    """Read and check everything, as a run does; the model is gone with this function, for each trial reads its own."""
    run = set_up(recipe, checkpoint_path, accelerator, watcher)
    settings, loaded = run.settings, run.loaded
    schedule = run_schedule(settings, rows_in(run.data.train), accelerator.num_processes)
    layers = decide_layers(loaded.model, settings.prune, loaded.stored_names)
    _, costs = from_main(see_costs(loaded.model, layers, settings, run.data))
    return _Given(
        settings=settings,
        accelerator=accelerator,
        checkpoint=run.checkpoint,
        teacher=run.teacher,
        data=run.data,
        objective=run.objective,
        costs=costs,
        plan=search_of(settings, schedule.steps, rates),
        metric=next(iter(run.objective.metrics), "loss"),
    )


def _search(given: _Given, watcher: Watcher, book: TrialBook, farewell: str) -> Tuned:
    plan, metric = given.plan, given.metric
    higher_is_better = given.objective.metrics.get(metric, False)
    watcher.say(f"searching the learning rate: {plan.text}; {plan.cost}")
    book.done = from_main(book.done)
    numbered: list[Trial] = []

    def attempt(rate: float, steps: int) -> Trial:
        trial, kept = book.done.get((rate, steps)), "  (kept)"
        if trial is None:
            trial, kept = _try(given, rate, steps, len(numbered) + 1, watcher), ""
            book.add(trial)
        numbered.append(trial)
        watcher.say(_line(len(numbered), trial, metric) + kept)
        return trial

    with _interrupted(farewell):
        choice = search_rate(plan, higher_is_better, attempt)
    for note in choice.notes:
        watcher.say(note)
    tuned = Tuned(plan, choice, metric, higher_is_better)
    watcher.say(f"found {tuned.recipe_line}")
    return tuned


def _try(given: _Given, rate: float, steps: int, number: int, watcher: Watcher) -> Trial:
    """One short run: the run with fewer steps and this rate, from the checkpoint's weights."""
    short: dict[str, Any] = {"steps": steps, "epochs": None, "evaluate_every": None, "trackers": []}
    train_section = given.settings.train.model_copy(update=short)
    settings = with_rate(given.settings, rate).model_copy(update={"train": train_section})
    scaler = given.accelerator.scaler
    scale = None if scaler is None else scaler.state_dict()
    try:
        with reproducible(train_section, given.accelerator):
            metrics = _metrics(given, settings, f"trial {number}, rate {rate_text(rate)}", watcher)
    except TrainingError as error:
        return Trial(rate, steps, None, str(error).splitlines()[0])
    finally:
        if scaler is not None and scale is not None:
            scaler.load_state_dict(scale)
        given.accelerator.free_memory()
        gc.collect()  # masks and weights refer to each other
    value, loss = metrics[given.metric], metrics.get("loss", math.inf)
    if not math.isfinite(value):
        return Trial(rate, steps, None, f"{given.metric} is {value}")
    return Trial(rate, steps, value, loss=loss if given.metric != "loss" and math.isfinite(loss) else None)


def _metrics(given: _Given, settings: Recipe, name: str, watcher: Watcher) -> dict[str, float]:
    """Train, and judge the weights that an export would hold."""
    accelerator = given.accelerator
    loaded = load_model(given.checkpoint, settings.model)
    model = loaded.model
    in_pieces = shards(settings.train, accelerator)
    teacher = given.teacher
    if teacher is None and given.objective.needs_teacher:
        teacher = copy.deepcopy(model).to(accelerator.device)
    if settings.train.gradient_checkpointing:
        checkpoint_gradients(model)
    assert settings.train.steps is not None, "a trial has steps"
    stored = loaded.stored_names
    pruner = Pruner(model, settings.prune, settings.train.steps, stored, given.costs, notice=watcher.detail)
    if in_pieces:
        shard(model, accelerator)
    else:
        model.to(accelerator.device)
    keep_freed_memory(LARGEST_IN_TRAINING)

    def on_step(record: StepRecord) -> None:
        watcher.step(replace(record, trial=name))

    train(
        model,
        pruner,
        given.objective,
        given.data,
        settings,
        accelerator,
        teacher=teacher,
        dtypes=loaded.dtypes,
        on_step=on_step,
    )
    with pruner.rounded(loaded.dtypes):
        return evaluate(
            model,
            given.objective,
            given.data,
            settings.data.evaluation_batch_size or settings.data.batch_size,
            accelerator,
            teacher=teacher,
            rows=settings.train.evaluation_rows,
            doing=f"evaluation of {name}",
            kind=TrainingError,
        )


def _line(number: int, trial: Trial, metric: str) -> str:
    """Like "trial 3  rate 1e-3  100 steps  accuracy 0.9611"."""
    came_to = f"{metric} {metric_text(trial.value)}" if trial.value is not None else f"diverged: {trial.error}"
    return f"trial {number}  rate {rate_text(trial.rate)}  {trial.steps:,} steps  {came_to}"


@contextmanager
def _interrupted(farewell: str) -> Iterator[None]:
    """Interrupted, with what is left of the search, in place of what a signal raises at any point of it."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"interrupted in a trial; {farewell}", error.exit_code - 128) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted in a trial; {farewell}", signal.SIGINT) from error
    except Terminated as error:
        raise Interrupted(f"interrupted in a trial; {farewell}", signal.SIGTERM) from error
