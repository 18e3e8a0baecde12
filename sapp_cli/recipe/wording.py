"""What a field allows and means, in words, from its type, its bounds and its description."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from sapp_cli.recipe.keys import flat, marks_of, section_in
from sapp_cli.recipe.names import joined
from sapp_cli.recipe.paths import FACTORY, PATH


def choices(annotation: Any) -> tuple[str, ...]:
    """The words a field allows by name."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(word for part in get_args(annotation) for word in choices(part))


@dataclass(frozen=True)
class Bounds:
    """Where a number may lie; an open end is not part of it."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: float) -> bool:
        above = self.low is None or number > self.low or (number == self.low and not self.low_open)
        below = self.high is None or number < self.high or (number == self.high and not self.high_open)
        return above and below

    def in_words(self, whole: bool) -> str:
        """` from 0 to below 1`, for whole numbers ` of at least 1`; empty without bounds."""
        high, high_open = self.high, self.high_open
        if whole and high_open and high is not None:
            high, high_open = high - 1, False
        if self.low is not None and high is not None:
            low = f"above {self.low} and" if self.low_open else f"from {self.low} to"
            return f" {low} {'below ' if high_open else ''}{high}"
        if self.low is not None:
            return f" above {self.low}" if self.low_open else f" of at least {self.low}"
        return f" of at most {high}" if high is not None else ""


def bounds(field: FieldInfo) -> Bounds | None:
    """The bounds of the numbers in a field; None if it has none."""
    return _bounds(marks_of(field))


def _bounds(marks: Iterable[Any]) -> Bounds | None:
    found: dict[str, Any] = {}
    for mark in marks:
        if isinstance(mark, Ge):
            found |= {"low": mark.ge}
        elif isinstance(mark, Gt):
            found |= {"low": mark.gt, "low_open": True}
        elif isinstance(mark, Le):
            found |= {"high": mark.le}
        elif isinstance(mark, Lt):
            found |= {"high": mark.lt, "high_open": True}
    return Bounds(**found) if found else None


def allowed(annotation: Any, marks: Sequence[Any] = ()) -> str:
    """What an annotation allows, in words: `a whole number of at least 1 or a list of 2 of these`."""
    alternatives = list(_alternatives(annotation, marks))
    simple = [words for words, item in alternatives if not item]
    lists = [f"{words}{' of these' if item in simple else f', each {item}'}" for words, item in alternatives if item]
    return joined([*simple, *lists])


def _alternatives(annotation: Any, marks: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The members of a union, or the one type, in words; beside a list or mapping, what it holds."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _alternatives(parts[0], tuple(flat(parts[1:])))
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from _alternatives(part, ())
    elif origin is Literal:
        yield from ((word, "") for word in parts)
    elif origin is tuple:
        yield f"a list of {len(parts)}", allowed(parts[0])
    elif origin is list:
        yield "a list", allowed(parts[0])
    elif origin is dict:
        yield "a mapping", "" if parts[1] is Any else allowed(parts[1])
    elif section := section_in(annotation):
        yield f"a mapping of {', '.join(section.model_fields)}", ""
    elif annotation is bool:
        yield from (("true", ""), ("false", ""))
    elif annotation is str and FACTORY in marks:
        yield from (("package.module:callable", ""), ("file.py:callable", ""))
    elif annotation is str:
        yield "a path" if PATH in marks else "text", ""
    elif annotation is type(None):
        yield "null", ""
    else:
        assert annotation in (int, float), f"no words for {annotation}"
        limits = _bounds(marks) or Bounds()
        yield f"{'a whole number' if annotation is int else 'a number'}{limits.in_words(annotation is int)}", ""


def meaning(field: FieldInfo) -> str:
    """The first sentence of a field's description: its unit and what it counts."""
    return re.split(r"(?<!App)[.;](?:\s+|$)", field.description or "", maxsplit=1)[0].replace("\n", " ")
