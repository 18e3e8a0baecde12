"""`sapp eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    CheckpointArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    RecipeOption,
    SetOption,
    VerboseOption,
    check_order,
    read_recipe,
)
from sapp_cli.codegen.support import require_instruction_set


def evaluate(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            metavar="CHECKPOINT",
            help="Dense checkpoint to compare with, where the objective does so.",
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compute the recipe's metrics on its validation data, for a dense or a block-sparse checkpoint.

    \b
    sapp eval ./my-model-sparse -r recipe.yaml
    sapp eval ./my-model-sparse/sparse -r recipe.yaml --json
    """
    require_instruction_set()
    check_order(checkpoint, recipe)
    flags = {"train.device": ("--device", device), "train.precision": ("--precision", precision)}
    loaded = read_recipe(recipe, sets, flags)

    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.cli.tables import print_metrics
    from sapp_cli.pipeline.evaluate import evaluate_checkpoint
    from sapp_cli.pipeline.watcher import Notes

    describe(checkpoint, quiet, verbose)
    metrics = evaluate_checkpoint(loaded, checkpoint, teacher, Notes(sayer(quiet)))
    if metrics is None:
        return  # one of several processes; the main one tells
    if as_json:
        print_document({"checkpoint": str(checkpoint), "metrics": metrics})
    else:
        print_metrics(stdout(), metrics)
