"""The files a `data.files` setting names: patterns expanded, what is missing said with the nearest name there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sapp_cli.checkpoint.damage import FETCH, POINTER
from sapp_cli.errors import SettingError, SourceError
from sapp_cli.recipe.names import nearest

POINTERS_END = 1024
"""Bytes that a pointer of Git LFS has at most, by its specification."""


def find_files(setting: str | Sequence[str] | None, key: str) -> list[Path]:
    """The files and folders of a setting in the order given, those of a pattern sorted; `key` names it in messages.

    Raises SettingError where the setting is empty, SourceError (all problems at once) where something is not there.
    """
    names = [setting] if isinstance(setting, str) else list(setting or [])
    if not names:
        raise SettingError([(key, "missing; name the file with the rows, a list of files or a pattern")])
    found: list[Path] = []
    problems: list[tuple[str, str]] = []
    for name in names:
        paths = _expand(Path(name).expanduser())
        found += paths
        problems += [(key, f"{path} {FETCH}") for path in paths if is_pointer(path)]
        if not paths:
            problems.append((key, _missing(Path(name).expanduser())))
    if problems:
        raise SourceError(problems)
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


def is_pointer(path: Path) -> bool:
    """True for a file that Git LFS has yet to fetch; these are small, so others are not opened."""
    try:
        if not path.is_file() or path.stat().st_size > POINTERS_END:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False  # told by whoever reads it


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
