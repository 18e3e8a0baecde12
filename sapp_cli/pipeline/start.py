"""What training, planning and evaluation start from: checkpoint, model, data and objective, read with cheap checks first.

All verbs that compute with a model begin here, so what one of them refuses, the others refuse too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.core.schedule import PhaseSchedule
from sapp_cli.errors import ResourceError, SappError, SettingError, TrainingError, UsageError
from sapp_cli.inputs.classes import classes_of
from sapp_cli.inputs.data import DataSets, load_data
from sapp_cli.inputs.heads import architecture_of, require_head
from sapp_cli.inputs.models import LoadedModel, load_model, require_whole
from sapp_cli.inputs.positions import require_positions, require_room
from sapp_cli.inputs.rows import rows_in
from sapp_cli.inputs.sentences import resolved_pooling, sentence_modules
from sapp_cli.inputs.sources import require_sources
from sapp_cli.layers import decide_layers
from sapp_cli.pipeline.watcher import Watcher
from sapp_cli.recipe.factory import load_factory
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.schema import ObjectiveSection, Recipe
from sapp_cli.training.collapse import guess_of
from sapp_cli.training.device import shards
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.loop import run_schedule
from sapp_cli.training.objectives import Objective, check_fits, make_objective
from sapp_cli.training.objectives.fit import parameters_read


@dataclass(frozen=True)
class Start:
    """What a run has read, whatever is to compute with it."""

    checkpoint: Checkpoint
    loaded: LoadedModel
    teacher: nn.Module | None  # where the recipe or the command line names one
    data: DataSets | None  # None for a plan whose data are not there
    objective: Objective | None  # None for a plan whose loss is not there
    schedule: PhaseSchedule | None  # None for an evaluation, and where it follows from data that are not there


@dataclass(frozen=True)
class Run:
    """All that training and evaluation start from, on the device that computes."""

    accelerator: Accelerator
    settings: Recipe
    checkpoint: Checkpoint
    loaded: LoadedModel
    teacher: nn.Module | None  # where the recipe or the command line names one
    data: DataSets
    objective: Objective

    @property
    def architecture(self) -> str | None:
        """The class that config.json names."""
        return architecture_of(self.checkpoint.config)

    def evaluate(self, model: nn.Module, teacher: nn.Module | None, *, alone: bool = False) -> dict[str, float]:
        """The metrics of a model on all validation rows, shared out among the processes unless this one is `alone`."""
        size = self.settings.data.evaluation_batch_size or self.settings.data.batch_size
        return evaluate(
            model,
            self.objective,
            self.data,
            size,
            self.accelerator,
            teacher=teacher,
            alone=alone,
            doing="evaluation of what was written" if alone else "evaluation",
            kind=TrainingError if alone else UsageError,
        )


def set_up(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    accelerator: Accelerator,
    watcher: Watcher,
    *,
    pruning: bool = True,
    teacher_path: Path | None = None,
) -> Run:
    """Read and check everything, and put it where it is to compute: a mistake shows before minutes of work."""
    settings = recipe.recipe
    start = read_start(
        settings,
        checkpoint_path,
        watcher,
        pruning=pruning,
        teacher_path=teacher_path,
        device=None if pruning and shards(settings.train, accelerator) else accelerator.device,
        world=accelerator.num_processes,
    )
    assert start.data is not None and start.objective is not None, "only a plan does without"
    teacher = start.teacher and start.teacher.to(accelerator.device)
    return Run(accelerator, settings, start.checkpoint, start.loaded, teacher, start.data, start.objective)


def warn_below_guessing(run: Run, metrics: Mapping[str, float], watcher: Watcher) -> None:
    """A line if a checkpoint is far worse than guessing, as one whose labels have other numbers than those of the rows."""
    guess = guess_of(run.objective, run.loaded.model, run.data)
    if guess is None or run.loaded.added or not guess.is_far_above(metrics[guess.metric], rows_in(run.data.validation)):
        return
    classes = classes_of(run.checkpoint.config or {})
    advice = f"; config.json: {classes}" if run.objective.name == "classification" and classes else ""
    watcher.say(
        f"warning: {guess.metric} {metrics[guess.metric]:.4g} of the checkpoint is far worse than guessing "
        f"({guess.value:.4g}); do the targets of the rows mean what the model learned?{advice}"
    )


def read_start(
    settings: Recipe,
    checkpoint_path: Path,
    watcher: Watcher,
    *,
    pruning: bool = True,
    needs_data: bool = True,
    names_absent: bool = True,
    whole: bool = True,
    teacher_path: Path | None = None,
    device: torch.device | None = None,
    world: int = 1,
) -> Start:
    """Checkpoint, model, data and objective, and whether they go together.

    `pruning`: for a run, which trains what the checkpoint lacks; else for figures of the checkpoint as it is. Without
    `needs_data`, files and functions of the data may be missing; `names_absent`: then one line names the first of them.
    Without `whole`, so may weights of the checkpoint. The model is moved to `device` where its
    fit is tried, or stays on the CPU. Raises SappError.
    """
    absent = _absent_sources(settings, needs_data)
    there = absent is None
    checkpoint = open_checkpoint(checkpoint_path)
    objective = _checked_objective(checkpoint, settings, watcher)
    data = None
    if there and pruning and settings.train.steps is None and settings.objective.task != "causal-lm":
        data = read_data(
            settings, checkpoint
        )  # cheap, as texts are not tokenized yet, and tells how many steps there are
    schedule = _schedule(settings, data, world) if pruning else None
    loaded = load_model(checkpoint, settings.model)
    if absent is not None and names_absent:
        watcher.say(f"planned without the data: {absent}")
    say = watcher.say if needs_data and pruning else watcher.detail
    for note in checkpoint.notes:
        watcher.say(note)
    say(f"{checkpoint_path}: {loaded.description}")
    for name in loaded.added if pruning else ():
        watcher.say(f"warning: the checkpoint has no '{name}'; it starts at random and is exported with the others")
    if _reads_texts(checkpoint, settings):
        require_room(settings.data.max_length, loaded.model)
    if pruning:
        decide_layers(loaded.model, settings.prune, loaded.stored_names)
    if data is None and there:
        data = read_data(settings, checkpoint)
        schedule = _schedule(settings, data, world) if pruning else None
    made = make_objective(objective, loaded.model) if there or objective.factory is None else None
    named = teacher_path or settings.objective.distill.teacher
    teaching = (
        load_model(open_checkpoint(named), settings.model) if named and made and made.needs_teacher and there else None
    )
    if data is not None and made is not None:
        say(data.description)
        for note in data.notes:
            watcher.say(note)
        if device is not None:
            loaded.model.to(device)
        teacher = None if teaching is None else teaching.model.to(device or "cpu")
        size = settings.data.batch_size
        check_fits(made, loaded.model, data, trains=pruning, batch_size=size, teacher=teacher)
        random = parameters_read(made, loaded.model, data, loaded.added) if loaded.added else []
        if random and whole and not pruning:
            require_whole(loaded, checkpoint_path, random)
        if random and pruning and made.needs_teacher and teaching is None:
            raise _random_teacher(random)
        if teaching is not None and named is not None:
            require_whole(teaching, Path(named), parameters_read(made, teaching.model, data, teaching.added))
    return Start(checkpoint, loaded, teaching.model if teaching else None, data, made, schedule)


def read_data(recipe: Recipe, checkpoint: Checkpoint) -> DataSets:
    return load_data(recipe.data, recipe.objective, checkpoint.folder, checkpoint.config, recipe.train.seed)


def _absent_sources(settings: Recipe, needed: bool) -> str | None:
    """What the recipe names for the data, the loss or the teacher and is not there, if that is not `needed`."""
    if not needed and settings.model.factory is not None:
        load_factory(settings.model.factory, "model.factory")
    try:
        require_sources(settings)
    except SappError as error:
        if needed:
            raise
        return str(error).splitlines()[0]
    return None


def _checked_objective(checkpoint: Checkpoint, settings: Recipe, watcher: Watcher) -> ObjectiveSection:
    """The objective with what the folder's files say of it; SettingError if they say something else."""
    require_head(checkpoint, settings)
    if _reads_texts(checkpoint, settings):
        require_positions(settings.data.max_length, checkpoint.config or {})
    objective = settings.objective
    if objective.task != "embedding-distillation":
        return objective
    modules = sentence_modules(checkpoint.folder)
    for text in modules.left_out if modules else ():
        watcher.say(f"warning: {text}")
    return objective.model_copy(update={"pooling": resolved_pooling(objective.pooling, modules)})


def _reads_texts(checkpoint: Checkpoint, settings: Recipe) -> bool:
    """True if rows are tokens of the checkpoint's own model."""
    data, config = settings.data, checkpoint.config or {}
    return data.source == "datasets" and data.format != "imagefolder" and "vocab_size" in config


def _schedule(settings: Recipe, data: DataSets | None, world: int) -> PhaseSchedule | None:
    """None where the steps follow from data that are not read."""
    if settings.train.steps is None and data is None:
        return None
    return run_schedule(settings, 0 if data is None else rows_in(data.train), world)


def _random_teacher(random: Sequence[str]) -> SettingError:
    names = f"'{random[0]}'" + (f" and {len(random) - 1} more" if len(random) > 1 else "")
    problem = (
        f"null: the checkpoint itself, which has no {names}, so the teacher would answer at random; name a teacher that has "
        "them, or set objective.distill.weight 0"
    )
    return SettingError([("objective.distill.teacher", problem)])


@contextmanager
def memory_errors(settings: Recipe) -> Iterator[None]:
    """ResourceError, with what to change, in place of torch's several ways to say that memory ran out."""
    advice = f"out of memory: lower data.batch_size (now {settings.data.batch_size}) and raise train.accumulate instead"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(advice) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # of the CPU's allocator
            raise ResourceError(advice) from error
        raise
