"""`sapp eval`, and the rows that `sapp bench` measures with: a checkpoint on the recipe's validation data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import SettingError
from sapp_cli.inputs.models import LoadedModel, load_model
from sapp_cli.inputs.rows import rows_in
from sapp_cli.inputs.sources import require_sources
from sapp_cli.pipeline.start import memory_errors, read_data, set_up
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.runtime.example_inputs import BenchInputs, Given
from sapp_cli.training.device import make_accelerator, reproducible
from sapp_cli.training.objectives import check_fits
from sapp_cli.training.objectives.forward import Inputs
from sapp_cli.training.processes import is_main, joined, meet


@located
def evaluate_checkpoint(
    recipe: LoadedRecipe, checkpoint_path: Path, teacher_path: Path | None
) -> dict[str, float] | None:
    """The recipe's metrics of a dense or block-sparse checkpoint on the recipe's validation data.

    Of several processes the main one gets them, the others None.
    """
    settings = recipe.recipe
    accelerator = make_accelerator(settings.train)
    with joined(), reproducible(settings.train, accelerator), memory_errors(settings):
        run = set_up(recipe, checkpoint_path, accelerator, None, pruning=False, teacher_path=teacher_path)
        if settings.objective.task == "embedding-distillation" and run.teacher is None:
            problem = f"{settings.objective.task} compares with a dense checkpoint; name it with --teacher"
            raise SettingError([("objective.task", problem)])
        check_fits(run.objective, run.loaded.model, run.data, trains=False)
        meet()  # whoever could not set up is gone by now
        metrics = run.evaluate(run.loaded.model, run.teacher)
        return metrics if is_main() else None


@located
def bench_inputs(
    recipe: LoadedRecipe, checkpoint_path: Path, batch_sizes: tuple[int, ...]
) -> tuple[LoadedModel, BenchInputs]:
    """The recipe's model, and a batch of each size of its validation rows: evenly spaced, some twice where there are few."""
    settings = recipe.recipe
    require_sources(settings)
    checkpoint = open_checkpoint(checkpoint_path)
    loaded = load_model(checkpoint, settings.model)
    data = read_data(settings, checkpoint)
    takes, rows = Inputs.of(loaded.model), rows_in(data.validation)

    def given(model: nn.Module) -> Iterator[Given]:
        for size in batch_sizes:
            batch = data.collate([data.validation[place * rows // size] for place in range(size)])
            yield Given(size, None, *takes.arguments(batch))

    return loaded, BenchInputs("rows of the recipe's validation data", given)
