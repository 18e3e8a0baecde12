"""`sapp plan`."""

from __future__ import annotations

import json

from sapp_cli.cli.options import (
    BlockSizeOption,
    CheckpointArgument,
    EpochsOption,
    JsonOption,
    MethodOption,
    PrintConfigOption,
    RecipeOption,
    SetOption,
    SparsityOption,
    StepsOption,
    parse_block_size,
    read_recipe,
)


def plan(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    block_size: BlockSizeOption = None,
    sparsity: SparsityOption = None,
    method: MethodOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show everything `prune` would decide, without training: layers and reasons, sparsity, timetable, sizes, memory.

    \b
    sapp plan ./my-model -r sentence-embedding --block-size 32
    """
    loaded = read_recipe(
        recipe,
        sets,
        {
            "prune.block_size": ("--block-size", parse_block_size(block_size)),
            "prune.sparsity": ("--sparsity", sparsity),
            "prune.method": ("--method", method),
            "train.steps": ("--steps", steps),
            "train.epochs": ("--epochs", epochs),
        },
    )
    if print_config:
        print(loaded.dump(with_origins=True), end="")
        return

    from sapp_cli import pipeline
    from sapp_cli.cli.tables import print_plan, stdout

    found = pipeline.plan(loaded, checkpoint)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        print_plan(stdout(), found)
