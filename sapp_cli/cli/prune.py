"""`sapp prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    LAYOUTS,
    OUTPUT,
    BlockSizeOption,
    CheckpointArgument,
    CompileOption,
    DeterministicOption,
    DeviceOption,
    EpochsOption,
    JsonOption,
    LayoutName,
    MethodOption,
    PrecisionOption,
    PrintConfigOption,
    QuietOption,
    RecipeOption,
    SeedOption,
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


def prune(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Folder to make.", show_default=False)
    ] = None,
    block_size: BlockSizeOption = None,
    sparsity: SparsityOption = None,
    target_size: TargetSizeOption = None,
    target_speedup: TargetSpeedupOption = None,
    method: MethodOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    deterministic: DeterministicOption = None,
    compile_model: CompileOption = None,
    layout: Annotated[
        LayoutName,
        typer.Option("--layout", metavar=LAYOUTS, help="Which weight files to write.", rich_help_panel=OUTPUT),
    ] = LayoutName.BOTH,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest file: 5GB; else as the source is split.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output of sapp that is there.", rich_help_panel=OUTPUT)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, if there is one.", rich_help_panel=OUTPUT)
    ] = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune a checkpoint with the recipe's method until it is block-sparse; export it and report on it.

    \b
    sapp prune ./my-model -r recipe.yaml -o ./my-model-90
    sapp prune ./my-model -r recipe.yaml --sparsity 0.8 --block-size 16x32 -o out
    sapp prune net.safetensors -r digits --set optimizer.lr=1e-3 -o out
    """
    from sapp_cli.checkpoint.output_folder import check_output
    from sapp_cli.checkpoint.write import parse_size

    if out is None and not print_config:
        raise typer.BadParameter("name the folder to write", param_hint="--out / -o")
    require_instruction_set()
    check_order(checkpoint, recipe, opens=not print_config)
    shard_bytes = parse_size(max_shard_size) if max_shard_size else None
    if out is not None and (target_size is not None or target_speedup is not None):
        check_output(out, checkpoint, overwrite)  # not only after every layer was measured
    flags = {
        "prune.block_size": ("--block-size", parse_block_size(block_size)),
        "prune.sparsity": ("--sparsity", sparsity),
        "prune.method": ("--method", method),
        "train.steps": ("--steps", steps),
        "train.epochs": ("--epochs", epochs),
        "train.seed": ("--seed", seed),
        "train.device": ("--device", device),
        "train.precision": ("--precision", precision),
        "train.deterministic": ("--deterministic", deterministic),
        "train.compile": ("--compile", compile_model),
    }
    loaded = with_target(
        read_recipe(recipe, sets, flags),
        checkpoint,
        (target_size, target_speedup),
        sparsity,
        lambda found: read_recipe(recipe, sets, {**flags, **found}),
        out if resume else None,
    )
    if print_config:
        print(loaded.dump(with_origins=True), end="")
        return
    assert out is not None, "asked for at the beginning"

    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.progress import ProgressWatcher
    from sapp_cli.cli.tables import print_result
    from sapp_cli.pipeline.prune import prune as prune_checkpoint

    with ProgressWatcher(quiet, verbose) as watcher:
        result = prune_checkpoint(
            loaded,
            checkpoint,
            out,
            watcher,
            layout=layout.value,
            overwrite=overwrite,
            resume=resume,
            max_shard_bytes=shard_bytes,
        )
    if result is None:
        return  # one of several processes; the main one has written and tells
    if as_json:
        print_document(result.as_json())
    else:
        print_result(stdout(), result)
