"""The folder beside OUT in which an output is written, how it takes its place, and what a killed run leaves of it.

    .NAME.sapp-new-XXXXXXXX/     beside OUT, while OUT is locked
      out/                       the new output; after the exchange, what stood at OUT before
      old/                       what stood at OUT, if the system cannot exchange two folders in one step
      replaced/                  the same, once the new output is in place: to be removed

At every moment there is a whole output at OUT, or, between two renames, a whole one at `old/`, which the next run puts back.
A run holds the lock of OUT (lock.py), so a folder that another process finds under that lock is a dead run's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sapp_cli.checkpoint.exchange import exchange
from sapp_cli.checkpoint.lock import holds
from sapp_cli.checkpoint.write import disk_errors, sync_folder

NEW, OLD, REPLACED = "out", "old", "replaced"
PARTS = {NEW, OLD, REPLACED}


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """The folder, with an empty folder `out` in it; both vanish when the block ends. Raises ResourceError."""
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
        (folder / NEW).mkdir()
    try:
        yield folder
    finally:
        list(_put_right(folder, out))


def put_in_place(folder: Path, out: Path) -> None:
    """Let the workspace's `out/` take the place of OUT. What stood there is moved into the workspace."""
    new, old = folder / NEW, folder / OLD
    if not out.exists():
        new.rename(out)
    elif not any(out.iterdir()):
        out.rmdir()
        new.rename(out)
    elif not exchange(new, out):
        try:
            out.rename(old)
            new.rename(out)
        except BaseException:
            with suppress(OSError):
                if old.exists() and not out.exists():
                    old.rename(out)
            raise
    sync_folder(out.parent)
    sync_folder(folder)


def recover(out: Path) -> list[str]:
    """Remove what killed runs left beside OUT, and put back what stood at OUT; lines about what was put back or cannot be.

    Without the lock of OUT nothing is touched, for it may belong to a run that lives.
    """
    if not holds(out):
        return []
    return [line for folder in _workspaces(out) for line in _put_right(folder, out)]


def _put_right(folder: Path, out: Path) -> Iterator[str]:
    old = folder / OLD
    if old.is_dir():
        if _is_free(out):
            with disk_errors(out.parent):
                old.rename(out)  # also onto an empty folder
                sync_folder(out.parent)
            yield f"{out}: put back as it was; a run was killed while it replaced this output"
        elif (folder / NEW).is_dir():  # what stands at OUT is neither what stood there nor what was to come
            yield f"{old}: stood at {out} until a run was killed while it replaced it; move it away, or remove {folder}"
            return
    _remove(folder)


def _remove(folder: Path) -> None:
    with suppress(OSError):
        (folder / OLD).rename(folder / REPLACED)  # half removed, it must not be put back
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _workspaces(out: Path) -> list[Path]:
    """Those beside OUT with nothing in them but what this version puts there."""
    name = re.compile(re.escape(_prefix(out)) + r"\w{8}")
    try:
        with os.scandir(out.parent) as entries:
            found = [
                Path(entry) for entry in entries if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
        return sorted(folder for folder in found if {entry.name for entry in folder.iterdir()} <= PARTS)
    except OSError:
        return []


def _is_free(out: Path) -> bool:
    """Nothing is there, or an empty folder."""
    return not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))


def _prefix(out: Path) -> str:
    return f".{out.name}.sapp-new-"
