"""Paths inside a recipe are relative to the recipe's own file; of a shipped recipe that was named, to the current folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from sapp_cli.visible import name_again

NAMES_ONLY: Mapping[str, Any] = {"folder": None}
"""The context of settings that are to be compared: of every path the last part, so that its folder may move."""


def resolve_path(value: str, context: Mapping[str, Any] | None) -> str:
    """`value` made absolute against `context["folder"]`, the recipe's; as it is without a context.

    A recipe that was named rather than given as a file has the current folder there, and its own as `context["shipped"]`:
    what is not here but beside it, in a checkout of the source, is taken from there.
    """
    if not context:
        return value
    if context["folder"] is None:
        return Path(name_again(value)).name
    path = Path(name_again(value))
    with suppress(RuntimeError):  # ~name of nobody known here: a file may be called so
        path = path.expanduser()
    place = os.path.normpath(Path(context["folder"]) / path)
    beside = os.path.normpath(Path(context.get("shipped") or context["folder"]) / path)
    return beside if not os.path.lexists(place) and os.path.lexists(beside) else place


def resolve_factory(value: str, context: Mapping[str, Any] | None) -> str:
    """`file.py:callable` with the file resolved; `package.module:callable` as it is."""
    place, _, name = value.rpartition(":")
    if not place.endswith(".py"):
        return value
    shipped = (context or {}).get("shipped")
    if shipped and (Path(shipped) / place).is_file():  # it comes with the recipe, whatever lies in the current folder
        return f"{Path(shipped) / place}:{name}"
    return f"{resolve_path(place, context)}:{name}"


def _path(value: str, info: ValidationInfo) -> str:
    return resolve_path(value, info.context)


def _factory(value: str, info: ValidationInfo) -> str:
    return resolve_factory(value, info.context)


PATH = AfterValidator(_path)
FACTORY = AfterValidator(_factory)
RecipePath = Annotated[str, Field(min_length=1), PATH]
"""A path, relative to the recipe's file."""
Factory = Annotated[str, Field(pattern=r"^.+:[A-Za-z_]\w*$"), FACTORY]
"""`package.module:callable`, or `file.py:callable` with the file relative to the recipe's."""
