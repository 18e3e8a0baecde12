"""The program: its verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import click
import typer

from sapp_cli._version import __version__
from sapp_cli.cli import evaluate, plan, prune, recipes, report
from sapp_cli.errors import SappError

app = typer.Typer(
    name="sapp",
    help="Give it a trained PyTorch checkpoint; get it back block-sparse, smaller and faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prune")(prune.prune)
app.command("plan")(plan.plan)
app.command("report")(report.report)
app.command("eval")(evaluate.evaluate)
app.add_typer(recipes.app, name="recipes")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sapp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Prune trained PyTorch checkpoints in blocks, with SequentialAttention++ and its competitors."""


def main() -> NoReturn:
    """Run the command line and exit with the code of docs/cli.md."""
    try:
        code = app(prog_name="sapp", standalone_mode=False)
    except SappError as error:
        code = _failed(error, error.exit_code)
    except click.exceptions.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = 130
        print("sapp: interrupted; nothing was written", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read stdout is gone; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception:
        traceback.print_exc()
        print("sapp: this is a bug of sapp; please report it with the lines above", file=sys.stderr)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: SappError, code: int) -> int:
    if os.environ.get("SAPP_DEBUG") == "1":
        traceback.print_exc()
    for line in str(error).splitlines():
        print(line if line.startswith("  ") else f"error: {line}", file=sys.stderr)
    return code
