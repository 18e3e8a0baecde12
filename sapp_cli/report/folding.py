"""Layers that are alike as one line: "encoder.layer.{0..11}.output.dense.weight"."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from math import prod

NUMBER = re.compile(r"(?:(?<=\.)|^)(?:0|[1-9][0-9]*)(?=\.|$)")  # a whole part of a name


def fold(rows: Iterable[tuple[str, Hashable]]) -> list[tuple[str, ...]]:
    """Groups of names, each where its first name stands. `rows`: (name, what is shown of it), each name once.

    The names of a group show the same and differ in numbers only. `folded_name` of a group names its members and no others.
    """
    given = list(rows)
    groups: dict[Hashable, list[str]] = {}
    for name, shown in given:
        groups.setdefault((_texts(name), shown), []).append(name)
    places = {name: place for place, (name, _) in enumerate(given)}
    exact = [group for names in groups.values() for group in _exact(names)]
    return sorted(exact, key=lambda names: places[names[0]])


def folded_name(names: Sequence[str]) -> str:
    """One name for all `names`; the first of them if they are not alike but for numbers, or not all of a range."""
    texts = _texts(names[0])
    if any(_texts(name) != texts for name in names) or not _is_exact(names):
        return names[0]
    return "".join(text + choice for text, choice in zip(texts, [*map(_ranges, _choices(names)), ""], strict=True))


def _exact(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names in groups that hold every combination of their numbers: cut at the first number until they do."""
    if _is_exact(names):
        return [tuple(names)]
    varying = next(place for place, choice in enumerate(_choices(names)) if len(choice) > 1)
    parts: dict[int, list[str]] = {}
    for name in names:
        parts.setdefault(_numbers(name)[varying], []).append(name)
    return [group for part in parts.values() for group in _exact(part)]


def _is_exact(names: Sequence[str]) -> bool:
    return prod(map(len, _choices(names))) == len(names)


def _choices(names: Sequence[str]) -> list[list[int]]:
    """What each number of the names may be, in order."""
    return [sorted(set(numbers)) for numbers in zip(*map(_numbers, names), strict=True)]


def _texts(name: str) -> tuple[str, ...]:
    return tuple(NUMBER.split(name))


def _numbers(name: str) -> list[int]:
    return [int(number) for number in NUMBER.findall(name)]


def _ranges(numbers: Sequence[int]) -> str:
    """[4] -> "4", [0, 1, 2, 5] -> "{0..2,5}"."""
    if len(numbers) == 1:
        return str(numbers[0])
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        first, *others = (number for _, number in run)
        parts.append(f"{first}..{others[-1]}" if others else str(first))
    return f"{{{','.join(parts)}}}"
