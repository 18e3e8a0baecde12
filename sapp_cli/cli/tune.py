"""`sapp tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    SETTINGS,
    BlockSizeOption,
    CheckpointArgument,
    CompileOption,
    DeterministicOption,
    DeviceOption,
    EpochsOption,
    JsonOption,
    MethodOption,
    PrecisionOption,
    PrintConfigOption,
    QuietOption,
    RecipeOption,
    SeedOption,
    SetOption,
    SparsityOption,
    StepsOption,
    VerboseOption,
    check_order,
    parse_block_size,
    read_recipe,
)
from sapp_cli.codegen.support import require_instruction_set

if TYPE_CHECKING:
    from sapp_cli.pipeline.tune import Tuned


def tune(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            metavar="LR[,LR…]",
            help="Learning rates to try; else a grid about 1e-3 (adamw, adam) or 0.02 (sgd).",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None,
    block_size: BlockSizeOption = None,
    sparsity: SparsityOption = None,
    method: MethodOption = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    deterministic: DeterministicOption = None,
    compile_model: CompileOption = None,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Search the learning rate of a recipe over whole short runs; print the trials and the line for the recipe.

    All trials together take at most twice the steps of the run; nothing is written. `sapp prune` with
    `--set optimizer.lr=auto` does the same before its run.

    \b
    sapp tune ./my-model -r recipe.yaml
    sapp tune ./my-model -r recipe.yaml --sparsity 0.8 --steps 2000
    sapp tune net.safetensors -r digits --rates 1e-3,2e-3,4e-3 --json
    """
    listed = None if rates is None else _rates(rates)
    require_instruction_set()
    check_order(checkpoint, recipe, opens=not print_config)
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
    loaded = read_recipe(recipe, sets, flags)
    if print_config:
        print(loaded.dump(with_origins=True), end="")
        return

    from sapp_cli.cli.progress import ProgressWatcher
    from sapp_cli.pipeline.tune import tune as search

    with ProgressWatcher(quiet, verbose) as watcher:
        found = search(loaded, checkpoint, watcher, rates=listed)
    if found is None:
        return  # one of several processes; the main one tells
    if as_json:
        print_document(found.as_json())
    else:
        print_trials(found)


def print_trials(found: Tuned) -> None:
    """The trials in the order of rounds and rates, notes, and the line for the recipe."""
    from rich.table import Table

    from sapp_cli.cli.console import stdout
    from sapp_cli.report.wording import metric_text
    from sapp_cli.training.rate_search import rate_text

    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("learning rate", "steps", found.metric):
        table.add_column(head, justify="right", no_wrap=True)
    trials = sorted(found.choice.trials, key=lambda trial: (trial.steps, trial.rate))
    for trial in trials:
        value = "diverged" if trial.value is None else metric_text(trial.value)
        is_best = trial.rate == found.choice.rate and trial.steps == trials[-1].steps
        table.add_row(rate_text(trial.rate), f"{trial.steps:,}", value, style="bold" if is_best else "")
    console.print(table)
    console.print()
    better = "higher" if found.higher_is_better else "lower"
    spent = sum(trial.steps for trial in trials)
    console.print(
        f"{found.metric}, {better} is better; {spent:,} steps in all trials, for a run of {found.plan.steps:,} steps"
    )
    for note in found.choice.notes:
        console.print(note)
    console.print(found.recipe_line)


def _rates(text: str) -> list[float]:
    found: list[float] = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0 < rate < float("inf"):
            raise typer.BadParameter(
                f"'{part.strip()}', expected learning rates above 0, such as 5e-4,1e-3,2e-3", param_hint="--rates"
            )
        found.append(rate)
    if len({*found}) < 2:
        raise typer.BadParameter(f"'{text}': give at least two different rates", param_hint="--rates")
    return found
