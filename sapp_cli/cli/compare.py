"""`sapp compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapp_cli.cli.completion import complete_methods
from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    OUTPUT,
    CheckpointArgument,
    DeviceOption,
    EpochsOption,
    JsonOption,
    MethodName,
    PrecisionOption,
    QuietOption,
    RecipeOption,
    SetOption,
    StepsOption,
    VerboseOption,
    check_order,
)
from sapp_cli.codegen.support import require_instruction_set

if TYPE_CHECKING:
    from sapp_cli.cli.comparison_progress import ComparisonWatcher
    from sapp_cli.comparing.cells import Budget, Cell, Place, Store, Variant
    from sapp_cli.comparing.table import Table
    from sapp_cli.pipeline.watcher import Watcher

CELLS = "What is compared"
EVERY_METHOD = ",".join(method.value for method in MethodName)


def compare(
    checkpoint: CheckpointArgument,
    recipe: RecipeOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the runs and the table; goes on where it stopped."),
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME[,NAME…]",
            help="Methods; LABEL=NAME gives one a label, for several variants of it.",
            show_default="all five",
            autocompletion=complete_methods,
            rich_help_panel=CELLS,
        ),
    ] = EVERY_METHOD,
    sparsity: Annotated[
        str, typer.Option("--sparsity", metavar="S[,S…]", help="Shares of the blocks to remove.", rich_help_panel=CELLS)
    ] = "0.8,0.9,0.95",
    block_size: Annotated[
        str,
        typer.Option("--block-size", metavar="B[,B…]", help="Block sizes: 8,16 or 8,16x32.", rich_help_panel=CELLS),
    ] = "16",
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds",
            metavar="N|S,[S…]",
            help="Number of seeds from 0 on, or the seeds; `7,`: only 7.",
            rich_help_panel=CELLS,
        ),
    ] = "3",
    method_sets: Annotated[
        list[str] | None,
        typer.Option(
            "--method-set",
            metavar="METHOD:KEY=VALUE",
            help="Set a recipe key for one method or label, e.g. magnitude:optimizer.lr=1e-3; repeatable.",
            rich_help_panel=CELLS,
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Search each row's learning rate first, all alike.",
            rich_help_panel=CELLS,
        ),
    ] = False,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="NAME", help="Metric to compare; else the recipe's first.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time; they share the threads.")
    ] = 1,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.", rich_help_panel=OUTPUT)] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown on stdout.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare methods on one budget: a run for each method, block size, sparsity and seed, one table with the costs.

    \b
    sapp compare ./my-model -r recipe.yaml -o comparison --sparsity 0.8,0.9
    sapp compare net.safetensors -r digits -o comparison --block-size 8,16 -j 4
    """
    from sapp_cli.checkpoint.lock import locked
    from sapp_cli.checkpoint.output import is_output
    from sapp_cli.checkpoint.output_folder import check_place
    from sapp_cli.cli.apart import call_apart
    from sapp_cli.cli.comparison_progress import ComparisonWatcher
    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.notes import describe
    from sapp_cli.comparing.cells import Budget, Store
    from sapp_cli.comparing.files import check_files
    from sapp_cli.errors import UsageError

    require_instruction_set()
    check_order(checkpoint, recipe)
    check_place(out, checkpoint)
    if is_output(out):
        raise UsageError(f"{out}: is an output of `sapp prune`; give another folder with -o for the comparison")
    check_files(out)
    variants = _variants(methods, method_sets or [])
    flags = {
        "train.steps": ("--steps", steps),
        "train.epochs": ("--epochs", epochs),
        "train.device": ("--device", device and device.value),
        "train.precision": ("--precision", precision and precision.value),
    }
    given = {key: (flag, value) for key, (flag, value) in flags.items() if value is not None}
    budget = Budget(checkpoint, recipe, tuple(sets or ()), given)
    choices = _blocks(block_size), _sparsities(sparsity), _seeds(seeds)
    store = Store(out)
    describe(checkpoint, quiet, verbose)
    watcher = ComparisonWatcher(quiet, verbose)
    with locked(out, watcher.say):
        if tune:
            from sapp_cli.comparing.tuning import find_rates, seed_of_searches

            alike = [replace(variant, sets=(*variant.sets, "optimizer.lr=auto")) for variant in variants]
            own = (*choices[:2], [seed_of_searches(choices[2])])
            searches = call_apart(_look_ahead, watcher, budget, alike, own, None, metric)
            rates = find_rates(searches, budget, out, watcher)
        else:
            rates = {}
        cells = call_apart(_look_ahead, watcher, budget, variants, choices, store, metric, rates)
        table, written = _run(cells, budget, store, jobs, watcher, metric)
    if as_json:
        print_document(table.as_json())
    elif as_csv:
        print(table.as_csv(), end="")
    elif as_markdown:
        print(table.as_markdown(), end="")
    else:
        print_table(table)
        console = stdout()
        console.print()
        console.print(f"written to {out}: {', '.join(written)}")


def _run(
    cells: list[Cell], budget: Budget, store: Store, jobs: int, watcher: ComparisonWatcher, metric: str | None
) -> tuple[Table, tuple[str, ...]]:
    """Run the cells and write the comparison: its table and the names of its files. Raises Interrupted after a signal."""
    from sapp_cli.comparing.files import write_files
    from sapp_cli.comparing.results import make_table
    from sapp_cli.comparing.runs import run_cells
    from sapp_cli.errors import Interrupted
    from sapp_cli.training.interruption import graceful_stop

    with watcher, graceful_stop() as stop:
        try:
            run_cells(cells, budget, store, jobs, watcher, stop, metric)
            if stop.signal_number is None:
                table = make_table(cells, store, metric)
                return table, write_files(store.folder, table, cells, budget)
        except BaseException as error:
            if stop.signal_number is None or isinstance(error, Exception):
                raise  # anything but a second signal, upon which the running cells save their states by themselves
    done = sum(map(store.is_settled, cells))
    assert stop.signal_number is not None, "else there is a table"
    raise Interrupted(
        f"interrupted; {done} of {len(cells)} cells are done, the same command goes on", stop.signal_number
    )


def _look_ahead(
    watcher: Watcher,
    budget: Budget,
    variants: Sequence[Variant],
    choices: tuple[Sequence[str], Sequence[float], Sequence[int]],
    store: Store | None,
    metric: str | None,
    rates: Mapping[Place, float] = {},
) -> list[Cell]:
    """The cells of `choices` (blocks, sparsities, seeds); without a `store`, they are searches for a learning rate.

    Raises what the first step of any of them would be too late for.

    It takes torch and the libraries of model and data, so it runs in a process of its own: this one stays, small, while the
    cells run.
    """
    from sapp_cli.comparing.cells import plan_cells
    from sapp_cli.report.wording import counted

    cells = plan_cells(budget, variants, *choices, rates)
    if pending := [cell for cell in cells if store is None or not store.is_settled(cell)]:
        from sapp_cli.pipeline.ahead import look_ahead

        todo = f"{counted(len(pending), 'row')} to tune" if store is None else f"{counted(len(pending), 'cell')} to run"
        watcher.say(f"{todo}; the checkpoint and the data are looked at first")
        # Seeds change nothing of what can be wrong.
        different = {(cell.variant, cell.block, cell.sparsity): cell.recipe for cell in pending}
        look_ahead([recipe for recipe in different.values() if recipe], budget.checkpoint, metric, watcher)
    return [replace(cell, recipe=None) for cell in cells]


def print_table(table: Table) -> None:
    """The table for people, in 80 columns; the best in bold with a star."""
    from rich.table import Table as Grid
    from rich.text import Text

    from sapp_cli.cli.console import stdout

    console = stdout()
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for head in ("block", "sparsity", "method", table.metric, "mult-adds", "size"):
        grid.add_column(head, justify="left" if head in ("block", "method") else "right", no_wrap=True)
    for block, sparsity, method, value, work, size, is_best in table.lines():
        style = "bold" if is_best else ""
        shown = Text(f"{value} {'*' if is_best else ' '}", style)
        if sparsity and grid.row_count:
            grid.add_section()
        grid.add_row(block, sparsity, Text(method, style), shown, work, size)
    console.print(grid)
    console.print()
    for line in table.footer:
        console.print(line)


def _variants(methods: str, method_sets: list[str]) -> list[Variant]:
    from sapp_cli.comparing.cells import Variant
    from sapp_cli.recipe.names import nearest

    known = [method.value for method in MethodName]
    sets: dict[str, list[str]] = {}
    for entry in _parts(methods, "--methods"):
        label, _, method = entry.rpartition("=")
        if method not in known:
            near = nearest(method, known)
            raise typer.BadParameter(
                f"'{method}' is no method; there are {', '.join(known)}" + (f"; nearest: {near}" if near else ""),
                param_hint="--methods",
            )
        if not all(c.isalnum() or c in "-_.+" for c in label):
            raise typer.BadParameter(f"'{label}' is no label: letters, digits and -_.+", param_hint="--methods")
        if (label or method) in sets:
            raise typer.BadParameter(
                f"'{label or method}' stands twice; give one a label, NAME={method}", param_hint="--methods"
            )
        sets[label or method] = [method]
    for entry in method_sets:
        label, colon, assignment = entry.partition(":")
        if not colon or label not in sets or "=" not in assignment:
            raise typer.BadParameter(
                f"'{entry}': write METHOD:KEY=VALUE with one of {', '.join(sets)}", param_hint="--method-set"
            )
        sets[label].append(assignment)
    return [Variant(label, method, tuple(assignments)) for label, (method, *assignments) in sets.items()]


def _parts(text: str, flag: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise typer.BadParameter(f"'{text}' has an empty place in its list", param_hint=flag)
    if len({*parts}) < len(parts):
        raise typer.BadParameter(f"'{text}' names something twice", param_hint=flag)
    return parts


def _sparsities(text: str) -> list[float]:
    found = []
    for part in _parts(text, "--sparsity"):
        try:
            found.append(float(part))
        except ValueError:
            raise typer.BadParameter(f"'{part}' is no number; write 0.8,0.9", param_hint="--sparsity") from None
    return found


def _blocks(text: str) -> list[str]:
    parts = [part.lower().replace("×", "x") for part in _parts(text, "--block-size")]
    for part in parts:
        sides = part.split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise typer.BadParameter(f"'{part}' is no block size; write 8,16x32", param_hint="--block-size")
    return parts


def _seeds(text: str) -> list[int]:
    listed = text.rstrip().endswith(",")  # as Python has it: 7, is the seed 7 where 7 are seven seeds
    parts = _parts(text.rstrip().removesuffix(","), "--seeds")
    is_count = len(parts) == 1 and not listed
    if not all(part.isdecimal() for part in parts) or (is_count and int(parts[0]) == 0):
        problem = f"'{text}': write a number of seeds, 3, or the seeds, 3,4,5 (one: 3,)"
        raise typer.BadParameter(problem, param_hint="--seeds")
    return list(range(int(parts[0]))) if is_count else [int(part) for part in parts]
