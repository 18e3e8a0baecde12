"""`sapp recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.completion import complete_shipped
from sapp_cli.cli.document import print_document
from sapp_cli.cli.notes import describe, sayer
from sapp_cli.cli.options import JsonOption, QuietOption, VerboseOption

app = typer.Typer(
    help="List and copy the shipped recipes, or begin one for a checkpoint",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command("ls")
def list_recipes(quiet: QuietOption = False, verbose: VerboseOption = False, as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from sapp_cli.cli.console import stdout
    from sapp_cli.cli.tables import print_recipes
    from sapp_cli.recipe.shipped import shipped_recipes

    found = shipped_recipes()
    more = sayer(quiet or not verbose)
    for recipe in found:
        more(f"{recipe.name}: {recipe.path}")
    if as_json:
        rows = [{"name": recipe.name, "title": recipe.title, "path": str(recipe.path)} for recipe in found]
        print_document(rows)
    else:
        print_recipes(stdout(), [(recipe.name, recipe.title) for recipe in found])


@app.command("cp")
def copy(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As `sapp recipes ls` shows it.", show_default=False, autocompletion=complete_shipped
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="Folder, or name of the new .yaml file.")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier copies that are there.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a shipped recipe, and the Python file it names, to change it.

    \b
    sapp recipes cp digits my-recipe.yaml
    """
    from sapp_cli.recipe.shipped import copy_recipe, find_recipe

    sayer(quiet or not verbose)(f"from {find_recipe(name)}")
    written = [str(path) for path in copy_recipe(name, destination, overwrite)]
    if as_json:
        print_document({"written": written})
    else:
        print("\n".join(written))


@app.command("init")
def init(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to be pruned.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write, the schema for editors beside it; else it is printed.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a recipe that is there, if sapp wrote it.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe for a checkpoint: its task, blocks that fit, the data section to fill in.

    \b
    sapp recipes init ./my-model -o my-recipe.yaml
    sapp plan ./my-model -r my-recipe.yaml
    """
    from sapp_cli.checkpoint.given_file import check_given, write_given
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.errors import UsageError
    from sapp_cli.recipe.shipped import NAMES_SCHEMA, recipe_kind, schema_copies
    from sapp_cli.starter import starter_recipe

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already; give another name with -o, or --overwrite to replace it")
    if out is not None:
        check_given(out, recipe_kind())
    describe(checkpoint, quiet, verbose)
    text = starter_recipe(open_checkpoint(checkpoint))
    written = []
    if out is not None:
        text = NAMES_SCHEMA + text
        schemas = {place: source.read_bytes() for source, place in schema_copies(out.parent).items()}
        for path, content in {out: text.encode(), **schemas}.items():
            write_given(path, content, recipe_kind())
            written.append(str(path))
    if as_json:
        print_document({"written": written, "recipe": text})
    else:
        print("\n".join(written) if written else text.removesuffix("\n"))


@app.command("schema")
def schema(quiet: QuietOption = False, verbose: VerboseOption = False, _as_json: JsonOption = False) -> None:
    """Print the JSON Schema of recipes, for editors; it is JSON with and without --json."""
    from sapp_cli._version import __version__
    from sapp_cli.recipe.schema import recipe_schema

    sayer(quiet or not verbose)(f"recipes of sapp {__version__}")
    print_document(recipe_schema())
