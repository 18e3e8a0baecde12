"""JSON of unknown origin: bounded in size and nesting, without duplicate names (two readers would differ on them).

And JSON that we write, which anybody can read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import AGAIN, FETCH, POINTER, damaged, quoted
from sapp_cli.visible import harmless_json

MAX_NESTING = 64
CONFIG_LIMIT = 16_000_000
INDEX_LIMIT = 100_000_000


def json_text(content: Any) -> str:
    """A document as every reader of JSON takes it. A byte of a file's name that is not UTF-8 reads as `\\xff` in it."""
    return harmless_json(json.dumps(content, indent=2, ensure_ascii=False))


def parse_object(text: bytes | str, path: Path, what: str, unique: bool = True) -> dict[str, Any]:
    """The JSON object in `text`, `what` of file `path`; `unique`: a name given twice in one object is an error.

    Raises CheckpointError for all else: no UTF-8, no JSON, no object, nested more than 64 deep, a number without end.
    """

    def pairs(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            (twice, _), *_ = Counter(name for name, _ in items).most_common(1)
            raise damaged(path, f"{what} has {quoted(twice)} twice")
        return found

    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=pairs if unique else None)
    except UnicodeDecodeError as error:
        raise damaged(path, f"{what} is not UTF-8 (byte {error.start}); {AGAIN}") from None
    except RecursionError:
        raise damaged(path, f"{what} is nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        raise damaged(path, f"{what} is not JSON: {error.msg} (character {error.pos}); {AGAIN}") from None
    except ValueError:  # Python refuses to turn thousands of digits into a number
        raise damaged(path, f"{what} has a number of too many digits") from None
    if not isinstance(value, dict):
        raise damaged(path, f"{what} is not a JSON object")
    if _nesting_exceeds(value, MAX_NESTING):
        raise damaged(path, f"{what} is nested more than {MAX_NESTING} deep")
    if "\\ud" in decoded or "\\uD" in decoded:  # half of a pair, as only an escape can write it, cannot even be printed
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise damaged(path, f"{what} has half a character (a lone surrogate) in a text") from None
    return value


def read_object(path: Path, what: str, limit: int, unique: bool = True) -> dict[str, Any]:
    """The JSON object that the file holds; CheckpointError also for a file of more than `limit` bytes."""
    try:
        if not path.is_file():
            raise damaged(path, "is not a regular file")
        with path.open("rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    if text.startswith(POINTER):
        raise damaged(path, FETCH)
    if len(text) > limit:
        raise damaged(path, f"{what} has more than {limit:,} bytes")
    return parse_object(text, path, what, unique)


def _nesting_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
