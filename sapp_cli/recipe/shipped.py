"""The recipes that come with the package: found by name, listed, copied to start from."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapp_cli.errors import UsageError
from sapp_cli.recipe.document import read_document
from sapp_cli.recipe.names import nearest

if TYPE_CHECKING:
    from sapp_cli.checkpoint.given_file import FileKind

_ENDINGS = (".yaml", ".yml")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
SCHEMA = "recipe.schema.json"
"""What `sapp recipes schema` prints, beside the shipped recipes: editors complete and check keys with it."""
NAMES_SCHEMA = f"# yaml-language-server: $schema={SCHEMA}\n"
"""The first line of a recipe beside it: where editors look for the schema."""


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
    """The recipe's file: the one at that path, or that of a shipped name.

    What ends in .yaml or .yml or has a folder in it is a path, and never a shipped name. Raises UsageError where there is no
    such recipe, or something else in its place.
    """
    path = Path(name_or_path)
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    is_path = path.suffix in _ENDINGS or "/" in str(name_or_path) or os.sep in str(name_or_path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except PermissionError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        is_file = is_folder = False
    if is_file and path.suffix in _WEIGHTS:
        raise UsageError(f"{path}: is a file of weights, not a recipe")
    if is_file:
        return path
    if path.name in shipped and not is_path:
        return shipped[path.name]
    if is_folder:
        inside = [file.name for file in _recipe_files(path)]
        there = f"in it: {', '.join(inside[:5])}" if inside else f"shipped: {', '.join(shipped) or 'none'}"
        raise UsageError(f"{path}: is a folder, not a recipe; {there}")
    if not is_path:
        here = {file.stem: file.name for file in _recipe_files(path.parent)}
        near = nearest(path.name, [*shipped, *here])
        near = near if near in shipped else here.get(near or "")
        parts = [f"shipped: {', '.join(shipped) or 'none'}", *([f"nearest: '{near}'"] if near else [])]
        raise UsageError(f"{path}: no such recipe, neither a file nor a shipped name; {'; '.join(parts)}")
    raise UsageError(f"{path}: no such file{_instead(path, shipped)}")


def shipped_values(name: str) -> Mapping[str, Any]:
    """The sections of a shipped recipe as its file has them, without defaults."""
    path = _folder() / f"{name}.yaml"
    values: dict[str, Any] = read_document(path.read_bytes(), str(path)).value
    return values


def is_shipped(path_or_name: str | Path, path: Path) -> bool:
    """True if `find_recipe` found a shipped recipe by its name."""
    return path.parent == _folder() and Path(path_or_name) != path


def _instead(path: Path, shipped: Collection[str]) -> str:
    """What may be meant by a path without a file: another one in its folder, or the shipped recipe of that name."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    there = {file.stem: file for file in _recipe_files(path.parent)}
    near = nearest(path.stem, there)
    if near:
        return f"; nearest: '{there[near]}'"
    return f"; the shipped recipe is -r {path.stem}" if path.stem in shipped else ""


def _recipe_files(folder: Path) -> list[Path]:
    """Of a folder that may not be there, or not be for our eyes."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
    except OSError:
        return []


def copy_recipe(name: str, destination: Path, overwrite: bool = False) -> list[Path]:
    """Copy a recipe, and the Python files its factories name, to a folder or a .yaml file; returns what it wrote.

    The schema that the recipe's first line names for editors comes along, unless one is there already.
    Raises UsageError, with nothing copied, if one of them exists and `overwrite` is not set, or if it is somebody else's: what
    sapp wrote is known by its first line.
    """
    from sapp_cli.checkpoint.given_file import check_given, write_given

    given = Path(name)
    is_file_name = given.suffix in _ENDINGS and given.parent == Path() and not given.is_file()
    source = find_recipe(given.stem if is_file_name else name)  # the file's name says the same here as the recipe's
    target = destination if destination.suffix in _ENDINGS else destination / source.name
    copies = {source: target}
    for file in _factory_files(read_document(source.read_bytes(), str(source)).value):
        copies[source.parent / file] = target.parent / file
    copies |= schema_copies(target.parent)
    existing = [copy for copy in copies.values() if copy.exists()]
    if existing and not overwrite:
        raise UsageError("\n".join(f"{path}: exists already; --overwrite replaces it" for path in existing))
    kinds = {copy: _kind(original) for original, copy in copies.items()}
    for copy, kind in kinds.items():
        if copy.parent.is_dir():
            check_given(copy, kind)
    for original, copy in copies.items():
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_given(copy, original.read_bytes(), kinds[copy])
        except OSError as error:
            raise UsageError(f"{copy}: cannot be written: {error.strerror or error}") from error
    return list(copies.values())


def recipe_kind() -> FileKind:
    """A recipe that sapp wrote, known by its first line."""
    from sapp_cli.checkpoint.given_file import FileKind, begins_with

    return FileKind("a recipe that sapp wrote", begins_with(NAMES_SCHEMA.encode()))


def _kind(original: Path) -> FileKind:
    """An earlier copy of this file, known by its first line whatever was changed below it."""
    from sapp_cli.checkpoint.given_file import FileKind, begins_with

    if original.suffix in _ENDINGS:
        return recipe_kind()
    first_line, end, _ = original.read_bytes().partition(b"\n")
    return FileKind(f"a copy of {original.name}", begins_with(first_line + end))


def schema_copies(folder: Path) -> dict[Path, Path]:
    """{our schema: its place in a folder of recipes}; nothing where a file of that name lies there, whatever is in it."""
    source, place = _folder() / SCHEMA, folder / SCHEMA
    return {source: place} if source.is_file() and not os.path.lexists(place) else {}


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
