"""Paths inside a recipe are relative to the recipe's own file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def resolve_path(value: str, context: Mapping[str, Any] | None) -> str:
    """`value` made absolute against `context["folder"]`, the recipe's; as it is without a context."""
    if not context:
        return value
    return str(Path(context["folder"]) / Path(value).expanduser())


def resolve_factory(value: str, context: Mapping[str, Any] | None) -> str:
    """`file.py:callable` with the file resolved; `package.module:callable` as it is."""
    place, _, name = value.rpartition(":")
    return f"{resolve_path(place, context)}:{name}" if place.endswith(".py") else value
