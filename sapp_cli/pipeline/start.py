"""What training and evaluation start from: checkpoint, model, data and objective, read with cheap checks first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import ResourceError, TrainingError, UsageError
from sapp_cli.inputs.data import DataSets, load_data
from sapp_cli.inputs.heads import architecture_of, require_head
from sapp_cli.inputs.models import LoadedModel, load_model
from sapp_cli.inputs.sources import require_sources
from sapp_cli.layers import decide_layers
from sapp_cli.pipeline.watcher import Silence, Watcher
from sapp_cli.pruner.decisions import make_schedule
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.device import shards
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.objectives import Objective, make_objective


@dataclass(frozen=True)
class Run:
    """All that training and evaluation start from."""

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


@dataclass(frozen=True)
class Start:
    """What a run has read, whatever is to compute with it: all on the CPU."""

    checkpoint: Checkpoint
    loaded: LoadedModel
    teacher: nn.Module | None  # where the recipe or the command line names one
    data: DataSets
    objective: Objective


def set_up(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    accelerator: Accelerator,
    watcher: Watcher | None,
    *,
    pruning: bool = True,
    teacher_path: Path | None = None,
) -> Run:
    """Read everything, cheap checks first: a mistake shows before minutes of work."""
    settings = recipe.recipe
    start = read_start(settings, checkpoint_path, watcher or Silence(), pruning=pruning, teacher_path=teacher_path)
    teacher = start.teacher and start.teacher.to(accelerator.device)
    if not (pruning and shards(settings.train, accelerator)):
        start.loaded.model.to(accelerator.device)
    return Run(accelerator, settings, start.checkpoint, start.loaded, teacher, start.data, start.objective)


def read_start(
    settings: Recipe,
    checkpoint_path: Path,
    watcher: Watcher,
    *,
    pruning: bool = True,
    teacher_path: Path | None = None,
) -> Start:
    """Checkpoint, model, data and objective; with `pruning`, settings that do not fit them are found on the way."""
    require_sources(settings)
    checkpoint = open_checkpoint(checkpoint_path)
    require_head(checkpoint, settings)
    loaded = load_model(checkpoint, settings.model)
    for note in checkpoint.notes:
        watcher.say(note)
    watcher.say(f"{checkpoint_path}: {loaded.description}")
    for name in loaded.added:
        watcher.say(f"warning: the checkpoint has no '{name}'; it starts at random and is exported with the others")
    if pruning:
        decide_layers(loaded.model, settings.prune, loaded.stored_names)
        if settings.train.steps is not None:
            make_schedule(settings.prune, settings.train.steps)
    data = read_data(settings, checkpoint)
    watcher.say(data.description)
    objective = make_objective(settings.objective, loaded.model)
    teacher = None
    named = teacher_path or settings.objective.distill.teacher
    if objective.needs_teacher and named is not None:
        teacher = load_model(open_checkpoint(named), settings.model).model
    return Start(checkpoint, loaded, teacher, data, objective)


def read_data(recipe: Recipe, checkpoint: Checkpoint) -> DataSets:
    return load_data(recipe.data, recipe.objective, checkpoint.folder, checkpoint.config, recipe.train.seed)


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
