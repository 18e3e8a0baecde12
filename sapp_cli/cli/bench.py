"""`sapp bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    OUTPUT,
    Device,
    JsonOption,
    QuietOption,
    SetOption,
    VerboseOption,
    check_order,
    read_recipe,
)
from sapp_cli.codegen.support import require_instruction_set

ESTIMATE = "Estimate before any training"


def bench(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Output of sapp prune; with --random-mask any checkpoint.",
            show_default=False,
        ),
    ],
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N[,N…]", help="Inputs at a time, e.g. 1,8.")
    ] = "1,8",
    sequence_length: Annotated[
        str | None,
        typer.Option(
            "--sequence-length",
            metavar="N[,N…]",
            help="Tokens of an input, for models that read text, e.g. 64,512; else 128.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="Recipe whose model.factory builds the model and whose validation data it is measured with.",
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    device: Annotated[
        Device, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.")
    ] = Device.AUTO,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Threads; else as many as torch takes.", show_default=False),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights and activations in bfloat16; else fp32.")] = False,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="N", min=0.0, help="Seconds to measure the model, for each batch size."),
    ] = 3.0,
    random_mask: Annotated[
        bool,
        typer.Option(
            "--random-mask", help="Leave out blocks of a dense checkpoint at random.", rich_help_panel=ESTIMATE
        ),
    ] = False,
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="N|RxC",
            help="16, or 16x32 (out × in); else the recipe's, or 16.",
            rich_help_panel=ESTIMATE,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity",
            metavar="SHARE",
            help="Share of the blocks to leave out; else the recipe's, or 0.9.",
            rich_help_panel=ESTIMATE,
        ),
    ] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save",
            help="Put the result into PATH, an output: bench.json, a section of README.md and sparsity.html.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure latency, throughput and memory on this machine: dense against block-sparse, each layer and the whole model.

    \b
    sapp bench ./my-model-sparse --batch-size 1,8 --sequence-length 64,512
    sapp bench ./my-model-sparse -r recipe.yaml --save
    sapp bench ./my-model --random-mask --block-size 16 --sparsity 0.9
    """
    from sapp_cli.cli.report import block_shape

    sizes = _counts(batch_size, "--batch-size", "batch sizes; write 1,8")
    lengths = _counts(sequence_length or "128", "--sequence-length", "lengths; write 64,512")
    if recipe is None and sets:
        raise typer.BadParameter("it changes a recipe; name one with -r", param_hint="--set")
    if recipe is not None and sequence_length is not None:
        raise typer.BadParameter("the recipe's data have lengths of their own", param_hint="--sequence-length")
    if not random_mask and (block_size or sparsity is not None):
        raise typer.BadParameter("they go with --random-mask", param_hint="--block-size and --sparsity")
    if random_mask and save:
        raise typer.BadParameter(
            "an estimate with --random-mask says nothing about the checkpoint's own weights; leave one of them out",
            param_hint="--save",
        )
    if sparsity is not None and not 0 < sparsity < 1:
        raise typer.BadParameter(f"{sparsity:g} is no share between 0 and 1", param_hint="--sparsity")
    require_instruction_set()
    check_order(path, recipe)
    block = block_shape(block_size)
    loaded = None if recipe is None else read_recipe(recipe, sets, {})
    home = None
    if save:
        from sapp_cli.outputs.speed_section import save_speed, saving_place

        home = saving_place(path)

    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.runtime.bench_results import RandomMask, Settings
    from sapp_cli.runtime.benchmark import bench as measure

    mask = RandomMask(block, sparsity) if random_mask else None
    settings = Settings(sizes, lengths, mask, bf16, device.value, threads, seconds)
    say = sayer(quiet)
    describe(path, quiet, verbose)
    if loaded is None:
        result = measure(path, settings, say)
    else:
        from sapp_cli.pipeline.evaluate import bench_inputs
        from sapp_cli.pipeline.watcher import Notes

        model, inputs = bench_inputs(loaded, path, sizes, Notes(say), whole=mask is None)
        result = measure(path, settings, say, loaded=model, inputs=inputs, section=loaded.recipe.prune)
    if as_json:
        print_document(result.as_json())
    else:
        from sapp_cli.cli.bench_table import print_result
        from sapp_cli.cli.console import stdout

        print_result(stdout(), result)
    if home is not None:
        for line in save_speed(home, result.as_json()):
            say(line)


def _counts(text: str, flag: str, what: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of {what}", param_hint=flag)
    return tuple(dict.fromkeys(map(int, parts)))
