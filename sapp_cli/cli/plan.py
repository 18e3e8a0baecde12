"""`sapp plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    BlockSizeOption,
    CheckpointArgument,
    EpochsOption,
    JsonOption,
    MethodOption,
    PrintConfigOption,
    QuietOption,
    RecipeOption,
    SetOption,
    SparsityOption,
    StepsOption,
    TargetSizeOption,
    TargetSpeedupOption,
    VerboseOption,
    check_order,
    parse_block_size,
    read_recipe,
    with_target,
)
from sapp_cli.codegen.support import require_instruction_set


def plan(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    block_size: BlockSizeOption = None,
    sparsity: SparsityOption = None,
    target_size: TargetSizeOption = None,
    target_speedup: TargetSpeedupOption = None,
    method: MethodOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    estimate_time: Annotated[
        bool,
        typer.Option(
            "--time", help="Rehearse a few steps of each phase and say how long the run takes; needs the data."
        ),
    ] = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show everything `prune` would decide, without training: layers and reasons, sparsity, timetable, sizes, memory.

    \b
    sapp plan ./my-model -r text-classification --block-size 32
    """
    require_instruction_set()
    check_order(checkpoint, recipe, opens=not print_config)
    flags = {
        "prune.block_size": ("--block-size", parse_block_size(block_size)),
        "prune.sparsity": ("--sparsity", sparsity),
        "prune.method": ("--method", method),
        "train.steps": ("--steps", steps),
        "train.epochs": ("--epochs", epochs),
    }
    loaded = with_target(
        read_recipe(recipe, sets, flags),
        checkpoint,
        (target_size, target_speedup),
        sparsity,
        lambda found: read_recipe(recipe, sets, {**flags, **found}),
    )
    if print_config:
        print(loaded.dump(with_origins=True), end="")
        return

    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.cli.tables import print_plan
    from sapp_cli.pipeline.plan import plan as plan_run
    from sapp_cli.pipeline.watcher import Notes

    describe(checkpoint, quiet, verbose)
    found = plan_run(loaded, checkpoint, Notes(sayer(quiet)))
    duration = None
    if estimate_time:
        from sapp_cli.cli.progress import ProgressWatcher
        from sapp_cli.rehearsal import estimate_duration

        with ProgressWatcher(quiet, verbose) as watcher:
            watcher.say("rehearsing a few steps of each phase")
            duration = estimate_duration(loaded, checkpoint, watcher)
    if as_json:
        seconds = {} if duration is None else {"time": duration.as_json()}
        print_document({**found.as_json(), **seconds})
    else:
        print_plan(stdout(), found, duration, every_layer=verbose)
