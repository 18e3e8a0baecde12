"""`sapp check`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from sapp_cli.report.gates import Gate

GATES = "Gates"
SIGNS = {"met": "ok", "not met": "FAIL", "does not apply": "n/a"}
STYLES = {"met": "", "not met": "bold red", "does not apply": "dim"}


class Weights(str, Enum):
    """What --min-sparsity looks at."""

    PRUNABLE = "prunable"
    PRUNED = "pruned"
    MODEL = "model"


def check(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Any checkpoint, an output of sapp or not.", show_default=False)
    ],
    min_sparsity: Annotated[
        float | None,
        typer.Option(
            "--min-sparsity",
            metavar="SHARE",
            help="Least share of zeros, e.g. 0.8; --of says of what.",
            rich_help_panel=GATES,
        ),
    ] = None,
    of: Annotated[
        Weights,
        typer.Option(
            "--of",
            metavar="prunable|pruned|model",
            help="For --min-sparsity: zeros in all prunable weights, those left dense included; removed blocks of the "
            "pruned layers; or zeros in the whole model.",
            rich_help_panel=GATES,
        ),
    ] = Weights.PRUNABLE,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="Most bytes of the weight files, e.g. 20MB: of the block-sparse ones where there are any.",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="DROP",
            help="Most that the run's metric may have become worse, absolute, e.g. 0.01.",
            rich_help_panel=GATES,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="For --max-drop: which metric; else the run's first.",
            rich_help_panel=GATES,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Hold a checkpoint against limits and against its own records; exit with 3 where a gate is not met.

    Always looked at, where it applies: dense and block-sparse files agree bit for bit, files have the SHA-256 of the
    manifest, recorded blocks are the nonzero ones.

    \b
    sapp check ./my-model-sparse --min-sparsity 0.8 --max-drop 0.01
    sapp check ./my-model-sparse --max-size 60MB --json > check.json
    """
    if min_sparsity is not None and not 0 <= min_sparsity <= 1:
        raise typer.BadParameter("is a share from 0 to 1; write 0.8 for 80 %", param_hint="--min-sparsity")
    if max_drop is not None and not math.isfinite(max_drop):
        raise typer.BadParameter("is not a finite number", param_hint="--max-drop")
    if metric is not None and max_drop is None:
        raise typer.BadParameter("means nothing without --max-drop", param_hint="--metric")

    from sapp_cli.checkpoint.write import parse_size
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.report.check import Limits
    from sapp_cli.report.check import check as run_gates
    from sapp_cli.report.wording import printable

    size = parse_size(max_size) if max_size is not None else None
    describe(path, quiet, verbose)
    result = run_gates(path, Limits(min_sparsity, of.value, size, max_drop, metric))
    for note in result.notes:
        sayer(quiet)(printable(note))
    if as_json:
        print_document(result.as_json())
    else:
        _print(result.gates)
    result.raise_if_failed()


def _print(gates: Iterable[Gate]) -> None:
    """A line for each; in a terminal the text wraps at words, in a column of its own."""
    from rich.table import Table
    from rich.text import Text

    from sapp_cli.cli.console import stdout

    console = stdout()
    table = Table.grid(padding=(0, 1))
    for width in (5, 14):
        table.add_column(min_width=width, no_wrap=True)
    for gate in gates:
        if console.is_terminal:
            table.add_row(SIGNS[gate.outcome], gate.name, Text(gate.text), style=STYLES[gate.outcome])
        else:
            print(f"{SIGNS[gate.outcome]:<5} {gate.name:<14} {gate.text}")
    if console.is_terminal:
        console.print(table)
