"""How keys and values are written in messages, how a key is read from a flag, and the nearest known name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("prune", "rules", 1, "match")."""

_PART = re.compile(r"\.?([^.\[\]]+)|\[([0-9]{1,6})\]")
_DEEPEST = 16  # parts of a key
_LONGEST = 60  # characters of a key or a value in a message


def dotted(path: KeyPath) -> str:
    """`prune.rules[1].match`."""
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{_one_line(part)}" for part in path)
    return written.removeprefix(".")


def key_path(key: str) -> KeyPath:
    """The path of `prune.rules[1].match` or `prune.rules.1.match`; ValueError if it is neither."""
    path: list[str | int] = []
    end = 0
    while match := _PART.match(key, end):
        name, index = match.groups()
        path.append(int(index or name) if index or re.fullmatch("[0-9]{1,6}", name) else name)
        end = match.end()
    if not path or len(path) > _DEEPEST or end != len(key) or key.startswith("."):
        raise ValueError(f"'{_one_line(key)}' is not a key such as prune.sparsity or prune.rules[0].match")
    return tuple(path)


def shown(value: Any) -> str:
    """A value as messages show it: text in single quotes, the rest as both YAML and JSON write it; cut when long."""
    if isinstance(value, str):
        return f"'{_one_line(value)}'"
    return _one_line(json.dumps(value, ensure_ascii=False, default=str))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, upper and lower case, `-` and `_` taken as equal; None if none is like it."""
    folded = {_folded(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_folded(name[:100]), folded, n=1)
    return folded[matches[0]] if matches else None


def joined(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, final = words
    return f"{', '.join(first)} or {final}" if first else final


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")


def _one_line(text: str) -> str:
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:_LONGEST]
    )
    return line if len(text) <= _LONGEST else line[:-1] + "…"
