"""Files at a place that the user named: written whole or not at all, and never over a file that sapp did not write."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sapp_cli.checkpoint.ownership import is_recorded, recorded_anew
from sapp_cli.checkpoint.write import disk_errors, replacing, require_folder
from sapp_cli.errors import UsageError

HEAD_BYTES = 4096


@dataclass(frozen=True)
class FileKind:
    """What sapp writes there."""

    name: str
    """As in "is not …"."""
    is_ours: Callable[[Path], bool]
    """True for a file of this kind that sapp wrote; it may raise OSError."""


def check_given(path: Path, kind: FileKind) -> None:
    """Raise UsageError if nothing can be written at `path`, or if sapp did not write what is there; before the work."""
    require_folder(path)
    target = _target(path)
    try:
        if not os.path.lexists(target):
            return
        if not target.is_file():
            raise UsageError(f"{path}: is a device or a pipe, not a regular file; give another name")
        ours = is_recorded(target) or kind.is_ours(target)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give another name") from None
    if not ours:
        raise UsageError(
            f"{path}: exists already and is not {kind.name}; give another name, or move that file elsewhere first"
        )


def write_given(path: Path, content: bytes, kind: FileKind) -> None:
    """Write the file; behind a link, what it leads to. Raises what `check_given` raises, and ResourceError.

    In an output, a file that sapp wrote is listed in the manifest as it is then.
    """
    check_given(path, kind)
    target = _target(path)
    with disk_errors(target.parent), recorded_anew(target.parent, [target.name]), replacing(target) as write:
        write(content)


def begins_with(*beginnings: bytes) -> Callable[[Path], bool]:
    """A file is known by its first bytes."""
    return lambda path: head(path).startswith(beginnings)


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _target(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise UsageError(f"{path}: is a link that leads back to itself; give another name") from None
