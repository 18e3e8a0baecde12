"""The output folder: built beside its place, then put there in one step, so that OUT is there whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sapp_cli.checkpoint.lock import locked
from sapp_cli.checkpoint.output import MANIFEST, is_output
from sapp_cli.checkpoint.ownership import check_ownership, record_files
from sapp_cli.checkpoint.workspace import NEW, put_in_place, recover, workspace
from sapp_cli.checkpoint.write import disk_errors, space_errors
from sapp_cli.errors import ResourceError, UsageError


@contextmanager
def output_folder(
    out: Path, checkpoint: Path, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> Iterator[Path]:
    """An empty folder beside `out`; it becomes `out` when the block ends, and vanishes if the block raises.

    The block writes manifest.json, among others; the list of all files is added to it. With `overwrite` an output that
    stands at `out` is exchanged with the new one and only then removed. OUT is locked meanwhile. Raises UsageError, before
    anything is written, if `out` exists, holds what sapp did not write, or overlaps with the checkpoint; ResourceError if
    the disk does not take it. `say`: as in `prepare_output`.
    """
    out = out.expanduser().resolve()
    check_output(out, checkpoint, overwrite)
    with locked(out, say):
        prepare_output(out, checkpoint, overwrite, say)
        with workspace(out) as folder:
            try:
                with space_errors(out.parent):
                    yield folder / NEW
            except ResourceError as error:  # the user knows OUT, not the folder beside it
                raise ResourceError(str(error).replace(str(folder / NEW), str(out))) from error
            with disk_errors(out.parent):
                record_files(folder / NEW)
                check_output(out, checkpoint, overwrite)  # what came into it meanwhile is not lost
                put_in_place(folder, out)


def prepare_output(out: Path, checkpoint: Path, overwrite: bool, say: Callable[[str], None]) -> None:
    """`check_output`, after what killed runs left beside `out` was removed or put back; OUT is locked by this process.

    `say` gets a line for what was put back, and for what cannot be.
    """
    for line in recover(out.expanduser().resolve()):
        say(line)
    check_output(out, checkpoint, overwrite)


def check_output(out: Path, checkpoint: Path, overwrite: bool) -> None:
    """Raise UsageError if `out` cannot become the output for this checkpoint; writes nothing."""
    check_place(out, checkpoint)
    out, source = out.expanduser().resolve(), checkpoint.expanduser().resolve()
    if source.is_relative_to(out):
        raise UsageError(f"{out}: the checkpoint lies inside the output's folder; give another folder with -o")
    with disk_errors(out.parent):
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    if not overwrite:
        raise UsageError(f"{out}: exists already; give another folder with -o, or --overwrite to replace it")
    if not is_output(out):
        raise UsageError(f"{out}: --overwrite replaces only outputs of sapp, and this has no {MANIFEST} of sapp in it")
    check_ownership(out, source if source.is_dir() else source.parent)


def check_place(out: Path, checkpoint: Path) -> None:
    """Raise UsageError if no folder can be made at `out`, or only one inside the checkpoint; writes nothing."""
    for path in (out, checkpoint):
        _check_links(path)
    out, source = out.expanduser().resolve(), checkpoint.expanduser().resolve()
    if out == source:
        raise UsageError(f"{out}: the output is the checkpoint itself; give another folder with -o")
    if source.is_dir() and out.is_relative_to(source):
        raise UsageError(f"{out}: the output lies inside the checkpoint's folder; give another folder with -o")
    with disk_errors(out.parent):
        if out.is_file():
            raise UsageError(f"{out}: is a file; give a folder with -o")
        above = next((parent for parent in out.parents if parent.is_file()), None)
        if above is not None:
            raise UsageError(f"{out}: {above} is a file, so nothing can lie in it; give another folder with -o")


def _check_links(path: Path) -> None:
    """Raise UsageError where links lead round in a circle, which Path.resolve tells otherwise in every version of Python."""
    try:
        path.expanduser().stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path}: is a link that leads back to itself; give another path") from None
    except RuntimeError:
        raise UsageError(f"{path}: there is no user {path.parts[0]}; give the folder itself") from None
