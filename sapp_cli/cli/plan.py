"""`sapp plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    BlockSizeOption,
    CheckpointArgument,
    EpochsOption,
    JsonOption,
    MethodOption,
    OptionalRecipeOption,
    PrintConfigOption,
    QuietOption,
    SetOption,
    SparsityOption,
    StepsOption,
    TargetSizeOption,
    TargetSpeedupOption,
    VerboseOption,
    check_order,
    parse_block_size,
    read_recipe,
    read_starter,
    with_target,
)
from sapp_cli.codegen.support import require_instruction_set

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sapp_cli.recipe.load import LoadedRecipe


def plan(
    checkpoint: CheckpointArgument,
    recipe: OptionalRecipeOption = None,
    block_size: BlockSizeOption = None,
    sparsity: SparsityOption = None,
    target_size: TargetSizeOption = None,
    target_speedup: TargetSpeedupOption = None,
    method: MethodOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    times: Annotated[
        bool | None,
        typer.Option(
            "--time/--no-time",
            help="With a recipe: estimate how long the run and the result take, from a few timed steps; needs the data. "
            "Without one an example is timed unless --no-time is given.",
            show_default=False,
        ),
    ] = None,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show everything `prune` would decide, without training: layers and reasons, sparsity, timetable, sizes, memory.

    Without a recipe it ends with what the model would gain: file size and latency on this machine.

    \b
    sapp plan ./my-model
    sapp plan ./my-model -r text-classification --block-size 32
    """
    require_instruction_set()
    check_order(checkpoint, recipe, opens=recipe is None or not print_config)
    if recipe is None and times:
        raise typer.BadParameter("a rehearsal needs data, which a recipe names; give one with -r", param_hint="--time")
    flags = {
        "prune.block_size": ("--block-size", parse_block_size(block_size)),
        "prune.sparsity": ("--sparsity", sparsity),
        "prune.method": ("--method", method),
        "train.steps": ("--steps", steps),
        "train.epochs": ("--epochs", epochs),
    }
    starter = _starter(checkpoint, quiet) if recipe is None else ""

    def read(found: Mapping[str, tuple[str, Any]]) -> LoadedRecipe:
        if recipe is None:
            return read_starter(starter, sets, {**flags, **found}, to_print=print_config)
        return read_recipe(recipe, sets, {**flags, **found})

    loaded = read({})
    if not print_config and loaded.suggests_factory:
        _plan_from_headers(
            checkpoint,
            loaded,
            target_size or target_speedup,
            as_json=as_json,
            timed=times is not False,
            verbose=verbose,
        )
        return
    loaded = with_target(loaded, checkpoint, (target_size, target_speedup), sparsity, read)
    if print_config:
        print(loaded.dump(with_origins=True), end="")
        return

    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.gain_lines import print_latency, print_plan_gains
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.cli.tables import print_plan
    from sapp_cli.pipeline.latency import latency
    from sapp_cli.pipeline.plan import plan as plan_run
    from sapp_cli.pipeline.watcher import Notes

    describe(checkpoint, quiet, verbose)
    found = plan_run(loaded, checkpoint, Notes(sayer(quiet)))
    duration = None
    if times:
        from sapp_cli.cli.progress import ProgressWatcher
        from sapp_cli.rehearsal import estimate_duration

        with ProgressWatcher(quiet, verbose) as watcher:
            watcher.say("rehearsing a few steps of each phase")
            duration = estimate_duration(loaded, checkpoint, watcher)
    expected = None
    if times or (recipe is None and times is None):
        sayer(quiet)("timing one example, dense and block-sparse; --no-time leaves it out")
        expected = latency(loaded, checkpoint)
    if as_json:
        timed = {"time": duration, "expected_latency": expected}
        print_document(
            {**found.as_json(), **{key: value.as_json() for key, value in timed.items() if value is not None}}
        )
        return
    print_plan(stdout(), found, duration, every_layer=verbose)
    if recipe is None:
        print_plan_gains(stdout(), found, loaded.recipe.prune.sparsity)
    if expected is not None:
        print_latency(stdout(), expected)


def _starter(checkpoint: Path, quiet: bool) -> str:
    """The text of the recipe that `sapp recipes init` writes."""
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.cli.notes import sayer
    from sapp_cli.report.wording import printable
    from sapp_cli.starter import starter_recipe

    text = starter_recipe(open_checkpoint(checkpoint))
    path = printable(shlex.quote(str(checkpoint)))
    sayer(quiet)(
        "no recipe given: using the one that `sapp recipes init` writes; to keep and change it: "
        f"sapp recipes init {path} -o my-recipe.yaml"
    )
    return text


def _plan_from_headers(
    checkpoint: Path, recipe: LoadedRecipe, target: object, *, as_json: bool, timed: bool, verbose: bool
) -> None:
    """What the headers of a bare file of weights tell."""
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.gain_lines import print_header_plan
    from sapp_cli.errors import UsageError
    from sapp_cli.gains import plan_from_headers
    from sapp_cli.recipe.located import located

    if target:
        raise UsageError(
            f"{checkpoint}: nothing says how to build this model, which a target needs; name a function that returns it "
            "with --set model.factory=file.py:function"
        )

    @located
    def plan_bare(recipe: LoadedRecipe) -> Any:
        return plan_from_headers(open_checkpoint(checkpoint), recipe.recipe.prune)

    found = plan_bare(recipe)
    if as_json:
        print_document(found.as_json())
    else:
        print_header_plan(stdout(), found, recipe.recipe.prune.sparsity, every_layer=verbose, timed=timed)
