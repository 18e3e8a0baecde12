"""The recipes that come with the package: found by name, listed, copied to start from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapp_cli.errors import UsageError
from sapp_cli.recipe.document import read_document
from sapp_cli.recipe.names import nearest

_ENDINGS = (".yaml", ".yml")
SCHEMA = "recipe.schema.json"
"""What `sapp recipes schema` prints, beside the shipped recipes: editors complete and check keys with it."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the package."""

    name: str  # as `-r` takes it
    path: Path
    title: str  # the first comment of the file


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name."""
    return [ShippedRecipe(path.stem, path, _title(path)) for path in sorted(_folder().glob("*.yaml"))]


def find_recipe(name_or_path: str | Path) -> Path:
    """The file at that path, else the shipped recipe of that name, .yaml or not; UsageError if there is neither."""
    path = Path(name_or_path)
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    name = path.stem if path.suffix in _ENDINGS else path.name
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        is_file = is_folder = False
    if is_file:
        return path
    if name in shipped and path.parent == Path():
        return shipped[name]
    problem = "is a folder, not a recipe" if is_folder else "no such recipe, neither a file nor a shipped name"
    near = nearest(name, shipped)
    parts = [problem, f"shipped: {', '.join(shipped) or 'none'}", *([f"nearest: '{near}'"] if near else [])]
    raise UsageError(f"{path}: {'; '.join(parts)}")


def copy_recipe(name: str, destination: Path, overwrite: bool = False) -> list[Path]:
    """Copy a recipe, and the Python files its factories name, to a folder or a .yaml file; returns what it wrote.

    The schema that the recipe's first line names for editors comes along, unless one is there already.
    Raises UsageError, with nothing copied, where one of them exists and `overwrite` is not set.
    """
    source = find_recipe(name)
    target = destination if destination.suffix in _ENDINGS else destination / source.name
    copies = {source: target}
    for file in _factory_files(read_document(source.read_bytes(), str(source)).value):
        copies[source.parent / file] = target.parent / file
    schema = target.parent / SCHEMA
    if (source.parent / SCHEMA).is_file() and not schema.exists():
        copies[source.parent / SCHEMA] = schema
    existing = [copy for copy in copies.values() if copy.exists()]
    if existing and not overwrite:
        raise UsageError("\n".join(f"{path}: exists already; --overwrite replaces it" for path in existing))
    for original, copy in copies.items():
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)
        except OSError as error:
            raise UsageError(f"{copy}: cannot be written: {error.strerror or error}") from error
    return list(copies.values())


def _folder() -> Path:
    """Inside the installed package; beside it in a checkout of the source."""
    package = Path(__file__).parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def _title(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = line.removeprefix("#").strip()
        if line.startswith("#") and comment and not comment.startswith("yaml-language-server:"):
            return comment
    return ""


def _factory_files(value: Any) -> Iterator[Path]:
    """The Python files that the factories of a recipe name, where they lie beside or below it."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key == "factory" and isinstance(inner, str) and (match := re.fullmatch(r"(.+\.py):\w+", inner)):
            file = Path(match[1])
            if not file.is_absolute() and ".." not in file.parts:
                yield file
        yield from _factory_files(inner)
