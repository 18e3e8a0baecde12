"""What a shell completes beyond flags and choices: recipes by name, keys of `--set`. Nothing here opens a checkpoint."""

from __future__ import annotations

from pathlib import Path

KEYS_FILE = Path(__file__).with_name("recipe_keys.json")
"""The schema's keys, their meanings and values: made by scripts/make_recipe_reference.py, since the schema imports torch."""
Candidates = list[tuple[str, str]]
"""(what completes the word, a line about it)."""


def complete_shipped(incomplete: str) -> Candidates:
    """The shipped recipes, for a name that begins so."""
    from sapp_cli.recipe.shipped import shipped_recipes

    return [(recipe.name, recipe.title) for recipe in shipped_recipes() if recipe.name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> Candidates:
    """Recipe files and folders of the current folder, then the shipped recipes; paths further off are the shell's."""
    places = sorted(path for path in Path().iterdir() if not path.name.startswith("."))
    folders = [f"{path.name}/" for path in places if path.is_dir()]
    files = [path.name for path in places if path.suffix in (".yaml", ".yml")]
    found = [(name, "") for name in [*files, *folders] if incomplete and name.startswith(incomplete)]
    if not incomplete:
        found = [(name, "") for name in files]
    return [*found, *complete_shipped(incomplete)]


def complete_methods(incomplete: str) -> Candidates:
    """Methods, for the last place of a list such as "acdc,pow"."""
    from sapp_cli.cli.options import MethodName

    before, comma, begun = incomplete.rpartition(",")
    return [
        (f"{before}{comma}{method.value}", "")
        for method in MethodName
        if method.value.startswith(begun) and method.value not in before.split(",")
    ]


def complete_key(incomplete: str) -> Candidates:
    """Recipe keys that hold a value, with the sign that comes next; behind it the values, where they are words of a list."""
    import json
    import re

    from rich.markup import escape

    keys = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    key, sign, _ = incomplete.partition("=")
    if sign:
        entry = keys.get(re.sub(r"\[\d+\]|\.\d+(?=\.)", "[]", key))
        return [(f"{key}={word}", "") for word in entry["values"]] if entry else []
    return [
        (f"{key}=", escape(entry["meaning"]))  # typer takes [density, 1/density] for a style
        for key, entry in keys.items()
        if key.startswith(incomplete) and "[" not in key
    ]
