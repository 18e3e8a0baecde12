"""The sparsity of a run that is to meet a size or a speed-up: solved for, or that of the run to go on with."""

from __future__ import annotations

import os
from pathlib import Path

from sapp_cli.errors import UsageError
from sapp_cli.pipeline.start import read_start
from sapp_cli.pipeline.watcher import Silence
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.targets import Solved, sparsity_for_size, sparsity_for_speedup
from sapp_cli.training.run_state import RunFolder
from sapp_cli.training.trials import read_trials


@located
def solve_target(recipe: LoadedRecipe, checkpoint_path: Path, size: int | None, speedup: float | None) -> Solved:
    """The sparsity that meets a size in bytes, or else a speed-up. Raises UsageError where none does."""
    settings = recipe.recipe
    # What is wrong is told once, by the run or the plan that follows.
    start = read_start(settings, checkpoint_path, Silence(), needs_data=False)
    checkpoint, loaded = start.checkpoint, start.loaded
    if size is not None:
        return sparsity_for_size(checkpoint, loaded, settings, size)
    assert speedup is not None, "one of the two is given"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--target-speedup: every process would measure another time; find it with `sapp plan` first")
    return sparsity_for_speedup(loaded, settings, start.data, speedup)


def interrupted_sparsity(out: Path) -> float | None:
    """`prune.sparsity` of the interrupted run of OUT, or of the search before it; None where there is none."""
    folder = RunFolder(out)
    if state := folder.latest():
        return state.record.recipe.prune.sparsity
    trials = read_trials(folder)
    return None if trials is None else trials.recipe.prune.sparsity
