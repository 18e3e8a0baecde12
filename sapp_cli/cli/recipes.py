"""`sapp recipes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.options import JsonOption

app = typer.Typer(help="List and copy the shipped recipes.", no_args_is_help=True, rich_markup_mode="rich")


@app.command("ls")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from sapp_cli.cli.tables import print_recipes, stdout
    from sapp_cli.recipe.shipped import shipped_recipes

    found = shipped_recipes()
    if as_json:
        rows = [{"name": recipe.name, "title": recipe.title, "path": str(recipe.path)} for recipe in found]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_recipes(stdout(), [(recipe.name, recipe.title) for recipe in found])


@app.command("cp")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `sapp recipes ls` shows it.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="Folder, or name of the new .yaml file.")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Copy a shipped recipe, and the Python file it names, to change it.

    \b
    sapp recipes cp digits my-recipe.yaml
    """
    from sapp_cli.recipe.shipped import copy_recipe

    for path in copy_recipe(name, destination, overwrite):
        print(path)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from sapp_cli.recipe.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
