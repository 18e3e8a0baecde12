"""A recipe, ready to use: read, merged with the command line, checked, and written out again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from sapp_cli.errors import RecipeError, UsageError
from sapp_cli.recipe.document import MAX_BYTES, read_document
from sapp_cli.recipe.dump import dump
from sapp_cli.recipe.keys import section_at
from sapp_cli.recipe.merge import Flag, Merged, merge, origins_at
from sapp_cli.recipe.names import KeyPath, dotted, key_path
from sapp_cli.recipe.problem import Layer, Origin, Problem
from sapp_cli.recipe.schema import Recipe
from sapp_cli.recipe.shipped import find_recipe, is_shipped
from sapp_cli.recipe.translate import problems_in
from sapp_cli.visible import stand_in

__all__ = ["STARTER", "Flag", "LoadedRecipe", "load_recipe", "load_starter"]

STARTER = Path("<sapp recipes init>")
"""Stands in messages for the file of a recipe that is in none."""
NOWHERE = Path(os.devnull)
"""A folder with nothing in it."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values came from."""

    recipe: Recipe
    origins: Mapping[KeyPath, Origin]  # of the values that are not defaults
    path: Path
    text: str  # of the file
    sha256: str  # of the file's bytes
    lines: Mapping[KeyPath, int]  # of the file's keys and items
    shipped: bool = False  # one that comes with the package

    @property
    def suggests_factory(self) -> bool:
        """True if `sapp recipes init` named a function that builds the model, for the user to write."""
        origin = self.origins.get(("model", "factory"))
        return self.path == STARTER and origin is not None and origin.layer is Layer.RECIPE

    def dump(self, with_origins: bool = False) -> str:
        """The whole merged recipe as YAML that loads to an equal one; each value's origin beside it where asked for."""
        return dump(self.recipe, self.origins if with_origins else None)

    def where(self, key: str) -> str:
        """`recipes/vit.yaml:12: prune.rules[1].match`: the beginning of a problem that only the model or data shows."""
        path = key_path(key)
        return f"{_origin(path, self.origins, self.lines, str(self.path)).place}: {dotted(path)}"

    def to_give(self, key: str) -> str:
        """The end of a message about a file that `key` names and that is not there: what to do with a shipped recipe."""
        origin = _origin(key_path(key), self.origins, self.lines, str(self.path))
        if not self.shipped or origin.layer is not Layer.RECIPE:
            return ""
        return f"; put it there, or copy the recipe and change it: sapp recipes cp {self.path.stem} ."


def load_recipe(path_or_name: str | Path, sets: Sequence[str] = (), flags: Mapping[str, Flag] = {}) -> LoadedRecipe:
    """The recipe in a file or of a shipped name, with `sets` (KEY=VALUE) and `flags` (by dotted key) laid over it.

    Raises RecipeError with every problem at once, in the order of the file; UsageError where there is no such file.
    """
    path = find_recipe(path_or_name)
    shipped = is_shipped(path_or_name, path)
    return _loaded(_read(path), path, shipped, context_of(path, shipped), sets, flags)


def load_starter(
    text: str, sets: Sequence[str] = (), flags: Mapping[str, Flag] = {}, folder: Path = NOWHERE
) -> LoadedRecipe:
    """The recipe of this text, which lies in no file; what it names lies in `folder`.

    Without a folder all of that counts as missing: a function that happens to have a suggested name does not run.
    """
    return _loaded(text.encode(), STARTER, False, {"folder": folder}, sets, flags)


def _loaded(
    data: bytes,
    path: Path,
    shipped: bool,
    context: Mapping[str, Path],
    sets: Sequence[str],
    flags: Mapping[str, Flag],
) -> LoadedRecipe:
    document = read_document(data, str(path))
    merged = merge(document, str(path), sets, flags)
    recipe, problems = _checked(merged, context)
    if recipe is None:
        origins = [p.origin or _origin(p.path, merged.origins, document.lines, str(path)) for p in problems]
        located = sorted(zip(origins, problems, strict=True), key=lambda pair: pair[0].rank)
        raise RecipeError([str(replace(problem, origin=origin)) for origin, problem in located])
    text = data.decode("utf-8-sig")
    digest = hashlib.sha256(data).hexdigest()
    return LoadedRecipe(recipe, merged.origins, path, text, digest, document.lines, shipped)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def context_of(path: Path, shipped: bool) -> dict[str, Path]:
    """Where the paths in a recipe begin."""
    folder = path.parent.absolute()
    return {"folder": Path.cwd(), "shipped": folder} if shipped else {"folder": folder}


def _checked(merged: Merged, context: Mapping[str, Path]) -> tuple[Recipe, list[Problem]] | tuple[None, list[Problem]]:
    """The recipe, or the problems that stand in its way."""
    problems = list(merged.problems)
    # JSON, because only there are lists tuples while "16" is no number and 1 is not true.
    text = stand_in(json.dumps(merged.values, ensure_ascii=False)).encode("utf-8", "replace")
    try:
        recipe = Recipe.model_validate_json(text, strict=True, context=context)
    except ValidationError as error:
        found = problems_in(error, merged.values)
        # A rule over all sections is judged again once the problems within them are mended.
        problems += [problem for problem in found if problem.path or not problems]
        return None, problems
    return (None, problems) if problems else (recipe, [])


def _origin(path: KeyPath, origins: Mapping[KeyPath, Origin], lines: Mapping[KeyPath, int], name: str) -> Origin:
    """Who to name for a problem at `path`: who gave the value; for a section, the recipe if it speaks of it."""
    found = origins_at(path, origins)
    origin = found[0 if section_at(path) else -1] if found else None
    if origin is not None and origin.layer is not Layer.RECIPE:
        return origin
    around = next((path[:count] for count in range(len(path), 0, -1) if path[:count] in lines), None)
    return Origin(Layer.RECIPE, name, lines[around] if around else None)
