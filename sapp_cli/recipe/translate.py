"""What pydantic found, in this tool's words: one problem a key, however many alternatives it was tried against."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sapp_cli.recipe.keys import field_at, section_at, unknown_key
from sapp_cli.recipe.names import KeyPath, nearest, shown
from sapp_cli.recipe.problem import Problem
from sapp_cli.recipe.wording import allowed, bounds, choices, meaning

_BOOLEAN_WORDS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_ABSENT = object()
_TOO = {
    "greater_than": "too small",
    "greater_than_equal": "too small",
    "less_than": "too large",
    "less_than_equal": "too large",
}


def problems_in(error: ValidationError, values: Any) -> list[Problem]:
    """One problem for each key of `values` that `error` is about."""
    problems: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False, include_context=True):
        path = _path_in(values, detail)
        kind = detail["type"]
        if kind == "extra_forbidden":
            text = unknown_key(path)
        elif kind == "missing" and isinstance(path[-1], str):
            text = f"missing; allowed: {_allowed_at(path)}"
        elif kind == "value_error":
            text = str(detail["ctx"]["error"])
        else:
            path, _ = field_at(path)
            value = _value_at(values, path)
            if kind == "literal_error" and isinstance(value, dict) and section_at(path):
                continue  # a name was possible too, but this is a mapping: what is wrong with it stands further down
            text = _misfit(path, value, kind)
        problems.setdefault(path, Problem(path, text))
    return list(problems.values())


def _path_in(values: Any, detail: ErrorDetails) -> KeyPath:
    """The error's place without the names of union members that pydantic puts between the keys."""
    path: KeyPath = ()
    for part in detail["loc"]:
        inner = values.get(part, _ABSENT) if isinstance(values, dict) else _ABSENT
        if isinstance(values, list) and isinstance(part, int):
            inner = values[part] if part < len(values) else _ABSENT
        if inner is not _ABSENT:
            path, values = (*path, part), inner
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else path


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _allowed_at(path: KeyPath) -> str:
    _, field = field_at(path)
    assert field is not None, f"{path} is no key of the schema"
    if isinstance(path[-1], int):  # an item of a list of sections
        return allowed(section_at(path))
    return allowed(field.annotation, field.metadata)


def _misfit(path: KeyPath, value: Any, kind: str) -> str:
    """`90 is too large; allowed: a number from 0 to below 1 (Share of the blocks …); a share: 0.9, not 90`."""
    _, field = field_at(path)
    assert field is not None, f"{path} is no key of the schema"
    words, is_number = choices(field.annotation), bounds(field) is not None
    wrong = "not allowed"
    if isinstance(value, int | float) and kind in _TOO:
        wrong = _TOO[kind]
    elif isinstance(value, str) and words and not is_number:
        wrong = "unknown"
    parts = [
        "no value" if value is None else f"{shown(value)} is {wrong}",
        f"allowed: {_allowed_at(path)}" + (f" ({meaning(field)})" if is_number and field.description else ""),
    ]
    if isinstance(value, str) and (near := nearest(value, words)):
        parts.append(f"nearest: '{near}'")
    return "; ".join([*parts, *_hints(value, field)])


def _hints(value: Any, field: FieldInfo) -> list[str]:
    """What was probably meant."""
    if value is None:
        return ["leave it out for the default"]
    if field.annotation is bool and isinstance(value, str) and value.lower() in _BOOLEAN_WORDS:
        return [f"write {_BOOLEAN_WORDS[value.lower()]}"]
    number, limits = _number(value), bounds(field)
    if number is None or limits is None:
        return []
    if limits.high == 1 and number > 1 and number / 100 in limits:
        return [f"a share: {number / 100:g}, not {value}"]
    if number in limits and isinstance(value, str) and not value.endswith("%"):
        return ["numbers stand without quotes"]
    if number in limits and isinstance(value, float) and value.is_integer():
        return [f"write {int(value)}"]
    return []


def _number(value: Any) -> float | None:
    """The finite number that a value is, or that a text or a percentage spells."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value.removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
