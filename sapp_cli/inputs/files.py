"""The files a `data.files` setting names: patterns expanded, what is missing said with the nearest name there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sapp_cli.errors import DataError, UsageError
from sapp_cli.recipe.names import nearest


def find_files(setting: str | Sequence[str] | None, key: str) -> list[Path]:
    """The files and folders of a setting in the order given, those of a pattern sorted; `key` names it in messages.

    Raises UsageError where the setting is empty, DataError (all problems at once) where something is not there.
    """
    names = [setting] if isinstance(setting, str) else list(setting or [])
    if not names:
        raise UsageError(f"{key} is missing: name the file with the rows, a list of files or a pattern")
    found: list[Path] = []
    problems: list[str] = []
    for name in names:
        paths = _expand(Path(name).expanduser())
        found += paths
        if not paths:
            problems.append(f"{key}: {_missing(Path(name).expanduser())}")
    if problems:
        raise DataError("\n".join(problems))
    return found


def hint(name: str, names: Iterable[str]) -> str:
    """`; nearest: 'x'` for the end of a message, or nothing where no name is near."""
    match = nearest(name, names)
    return f"; nearest: '{match}'" if match else ""


def place(paths: Sequence[Path]) -> str:
    """How messages name the files rows come from."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _expand(path: Path) -> list[Path]:
    if path.exists():
        return [path]  # a name that looks like a pattern may be a file's own
    first = next((index for index, part in enumerate(path.parts) if _is_pattern(part)), None)
    if first is None:
        return []
    return sorted(Path(*path.parts[:first]).glob(str(Path(*path.parts[first:]))))


def _missing(path: Path) -> str:
    if _is_pattern(str(path)):
        return f"no file matches {path}"
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent}"
    return f"no file {path}{hint(path.name, (sibling.name for sibling in path.parent.iterdir()))}"
