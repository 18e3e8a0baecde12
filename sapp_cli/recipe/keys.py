"""The schema as data: which field a key is, and where a key belongs that is unknown here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sapp_cli.recipe.names import KeyPath, joined, nearest
from sapp_cli.recipe.paths import FACTORY, PATH
from sapp_cli.recipe.schema import Recipe
from sapp_cli.recipe.trainer_names import TRAINER_NAMES


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation is, lists, or offers among others."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The section that stands at `path`; an index leads into the list it counts."""
    section: type[BaseModel] | None = Recipe
    for part in path:
        if section is not None and isinstance(part, str):
            field = section.model_fields.get(part)
            section = section_in(field.annotation) if field else None
    return section


def field_at(path: KeyPath) -> tuple[KeyPath, FieldInfo | None]:
    """The field that `path` is or leads into, and its own path: `prune.block_size` for `prune.block_size[1]`."""
    section: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    for count, part in enumerate(path):
        if section is None:
            return path[:count], field
        if isinstance(part, str):
            field = section.model_fields.get(part)
            section = section_in(field.annotation) if field else None
    return path, field


@cache
def all_keys() -> tuple[str, ...]:
    """Every key of the schema, dotted, sections first: `prune`, `prune.method`, …, `prune.rules[].match`."""
    return tuple(_keys_under(Recipe, ""))


def _keys_under(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = section_in(field.annotation)
        if inner is not None:
            items = "[]" if get_origin(field.annotation) is list else ""
            yield from _keys_under(inner, f"{prefix}{name}{items}.")


def unknown_key(path: KeyPath) -> str:
    """What to say of a key the schema does not have: the nearest in its section, or where it belongs."""
    name, section = str(path[-1]), section_at(path[:-1])
    assert section is not None, f"only a section can have an unknown key, not {path}"
    if name in all_keys():
        outer, _, inner = name.rpartition(".")
        return f"unknown key; write {inner} under {outer}"
    if belongs := _named(name):
        return f"unknown key; did you mean {joined(belongs)}?"
    if near := nearest(name, section.model_fields):
        return f"unknown key; nearest: '{near}'"
    if near := nearest(name, (key.rpartition(".")[2] for key in all_keys())):
        return f"unknown key; did you mean {joined(_named(near))}?"
    return f"unknown key; allowed: {joined(section.model_fields)}"


def _named(name: str) -> list[str]:
    """The keys of that name, here or at the Trainer; those of rules only where no other section has it."""
    keys = [key for key in all_keys() if key.rpartition(".")[2] == name or key == TRAINER_NAMES.get(name)]
    return [key for key in keys if "[]" not in key] or keys


def marker(path: KeyPath) -> Literal["path", "factory"] | None:
    """What kind of place the text at `path` names, if any."""
    _, field = field_at(path)
    marks = tuple(marks_of(field)) if field else ()
    return "path" if PATH in marks else "factory" if FACTORY in marks else None


def marks_of(annotation: Any) -> Iterator[Any]:
    """Everything attached to an annotation and to its parts: bounds, patterns, validators."""
    if isinstance(annotation, FieldInfo):
        yield from annotation.metadata
        yield from marks_of(annotation.annotation)
    elif get_origin(annotation) is Annotated:
        inner, *attached = get_args(annotation)
        yield from flat(attached)
        yield from marks_of(inner)
    else:
        for part in get_args(annotation):
            yield from marks_of(part)


def flat(attached: Iterable[Any]) -> Iterator[Any]:
    """The marks attached to one annotation, those that stand in a Field among them."""
    for mark in attached:
        if isinstance(mark, FieldInfo):
            yield from mark.metadata
        else:
            yield mark
