"""`sapp check`."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.options import JsonOption

GATES = "Gates"
SIGNS = {"met": "ok", "not met": "FAIL", "does not apply": "n/a"}


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
    from sapp_cli.report.check import Limits
    from sapp_cli.report.check import check as run_gates

    size = parse_size(max_size) if max_size is not None else None
    result = run_gates(path, Limits(min_sparsity, of.value, size, max_drop, metric))
    if as_json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        for gate in result.gates:
            print(f"{SIGNS[gate.outcome]:<5} {gate.name:<14} {gate.text}")
    result.raise_if_failed()
