"""What is wrong with many runs, found before the first of them begins: `sapp compare` looks ahead for all its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapp_cli.errors import UsageError
from sapp_cli.inputs.rows import rows_in
from sapp_cli.layers import decide_layers
from sapp_cli.pipeline.start import Start, memory_errors, read_start
from sapp_cli.pipeline.tune import search_of
from sapp_cli.pipeline.watcher import Silence, Watcher
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.device import on_cpu
from sapp_cli.training.loop import run_schedule
from sapp_cli.training.trackers import require_packages


@dataclass(frozen=True)
class _Seen:
    """What the run of a recipe starts from; one that asks for the same takes it as it is."""

    settings: Recipe
    start: Start

    def serves(self, settings: Recipe) -> bool:
        mine = self.settings
        return (mine.model, mine.data, mine.objective) == (settings.model, settings.data, settings.objective)


def look_ahead(recipes: Sequence[LoadedRecipe], checkpoint_path: Path, metric: str | None, watcher: Watcher) -> None:
    """Raise what `prune`, in one process, would raise before the first step of any of these runs.

    The model is built and the data are read once for all recipes that ask for the same. Raises UsageError for a `metric`
    that the runs are to be compared by and will not have.
    """
    seen: _Seen | None = None
    for recipe in recipes:
        seen = _look_at(recipe, checkpoint_path, seen, Silence() if seen else watcher)
        assert seen.start.objective is not None, "only a plan does without"
        metrics = {**seen.start.objective.metrics, "loss": False}
        if metric is not None and metric not in metrics:
            raise UsageError(f"--metric {metric}: the runs have {', '.join(metrics)}")


@located
def _look_at(recipe: LoadedRecipe, checkpoint_path: Path, seen: _Seen | None, watcher: Watcher) -> _Seen:
    settings = recipe.recipe
    with memory_errors(settings):
        on_cpu(settings.train)
        require_packages(settings.train.trackers)
        if seen is None or not seen.serves(settings):
            seen = _Seen(settings, read_start(settings, checkpoint_path, watcher))
        start = seen.start
        decide_layers(start.loaded.model, settings.prune, start.loaded.stored_names)
        assert start.data is not None, "only a plan does without"
        schedule = run_schedule(settings, rows_in(start.data.train), world=1)
        if settings.optimizer.lr == "auto":
            search_of(settings, schedule.steps)
    return seen
