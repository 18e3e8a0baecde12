"""What a shell completes beyond flags and choices: recipes by name, keys of `--set`. Nothing here opens a checkpoint."""

from __future__ import annotations

Candidates = list[tuple[str, str]]
"""(what completes the word, a line about it)."""


def complete_shipped(incomplete: str) -> Candidates:
    """The shipped recipes, for a name that begins so."""
    from sapp_cli.recipe.shipped import shipped_recipes

    return [(recipe.name, recipe.title) for recipe in shipped_recipes() if recipe.name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> Candidates:
    """Recipe files and folders of the current folder, then the shipped recipes; paths further off are the shell's."""
    from pathlib import Path

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
    from sapp_cli.recipe.keys import all_keys, field_at, section_in
    from sapp_cli.recipe.names import key_path
    from sapp_cli.recipe.wording import choices, meaning

    key, sign, _ = incomplete.partition("=")
    if sign:
        _, field = field_at(key_path(key))
        words = () if field is None else ("true", "false") if field.annotation is bool else choices(field.annotation)
        return [(f"{key}={word}", "") for word in words]
    found = []
    for key in all_keys():
        if key.startswith(incomplete) and "." in key and "[" not in key:
            _, field = field_at(key_path(key))
            if field is not None and section_in(field.annotation) is None:
                found.append((f"{key}=", meaning(field)))
    return found
