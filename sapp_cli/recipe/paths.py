"""Paths inside a recipe are relative to the recipe's own file."""

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
    """`value` made absolute against `context["folder"]`, the recipe's; as it is without a context."""
    if not context:
        return value
    if context["folder"] is None:
        return Path(name_again(value)).name
    path = Path(name_again(value))
    with suppress(RuntimeError):  # ~name of nobody known here: a file may be called so
        path = path.expanduser()
    return os.path.normpath(Path(context["folder"]) / path)


def resolve_factory(value: str, context: Mapping[str, Any] | None) -> str:
    """`file.py:callable` with the file resolved; `package.module:callable` as it is."""
    place, _, name = value.rpartition(":")
    return f"{resolve_path(place, context)}:{name}" if place.endswith(".py") else value


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
