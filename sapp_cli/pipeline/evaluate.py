"""`sapp eval`, and the rows that `sapp bench` measures with: a checkpoint on the recipe's validation data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from sapp_cli.errors import SettingError
from sapp_cli.inputs.models import LoadedModel
from sapp_cli.inputs.rows import rows_in
from sapp_cli.pipeline.start import memory_errors, read_start, set_up, warn_below_guessing
from sapp_cli.pipeline.watcher import Silence, Watcher
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.runtime.example_inputs import BenchInputs, Given
from sapp_cli.training.device import make_accelerator, reproducible
from sapp_cli.training.objectives.forward import Inputs
from sapp_cli.training.processes import is_main, joined, meet


@located
def evaluate_checkpoint(
    recipe: LoadedRecipe, checkpoint_path: Path, teacher_path: Path | None, watcher: Watcher | None = None
) -> dict[str, float] | None:
    """The recipe's metrics of a dense or block-sparse checkpoint on the recipe's validation data.

    Only rank 0 gets them, the other ranks None. Raises CheckpointError if the checkpoint lacks weights that they depend on.
    """
    settings = recipe.recipe
    accelerator = make_accelerator(settings.train)
    with joined(), reproducible(settings.train, accelerator), memory_errors(settings):
        if settings.objective.task == "embedding-distillation" and not (
            teacher_path or settings.objective.distill.teacher
        ):
            problem = f"{settings.objective.task} compares with a dense checkpoint; name it with --teacher"
            raise SettingError([("objective.task", problem)])
        watcher = watcher if watcher is not None and is_main() else Silence()
        run = set_up(recipe, checkpoint_path, accelerator, watcher, pruning=False, teacher_path=teacher_path)
        meet()  # whoever could not set up is gone by now
        metrics = run.evaluate(run.loaded.model, run.teacher)
        warn_below_guessing(run, metrics, watcher)
        return metrics if is_main() else None


@located
def bench_inputs(
    recipe: LoadedRecipe,
    checkpoint_path: Path,
    batch_sizes: tuple[int, ...],
    watcher: Watcher | None = None,
    *,
    whole: bool = True,
) -> tuple[LoadedModel, BenchInputs]:
    """The recipe's model, and a batch of each size of its validation rows: evenly spaced, some twice where there are few."""
    start = read_start(recipe.recipe, checkpoint_path, watcher or Silence(), pruning=False, whole=whole)
    loaded, data = start.loaded, start.data
    assert data is not None, "only a plan does without"
    takes, rows = Inputs.of(loaded.model), rows_in(data.validation)

    def given(model: nn.Module) -> Iterator[Given]:
        for size in batch_sizes:
            batch = data.collate([data.validation[place * rows // size] for place in range(size)])
            yield Given(size, None, *takes.arguments(batch))

    return loaded, BenchInputs("rows of the recipe's validation data", given)
