"""One process at a time writes an output: a lock beside OUT that ends with the process that holds it.

    .NAME.sapp-lock        beside OUT while a command writes OUT; names that command's process

The lock is `flock` on this file. The system releases it when the process ends, whatever ended it, so a file that a killed
process left behind locks nothing: the next command takes it over and removes it. On NFS, Linux turns `flock` into a lock of
the server, which holds for all machines. A disk without locks gets a warning, and the command runs without one.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.errors import UsageError

TAKEN = frozenset({errno.EWOULDBLOCK, errno.EACCES})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
HOLDER = re.compile(rb"(\d{1,10}) ([\w.-]{1,255}) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\n", re.ASCII)
"""What a lock file holds: process, host name, local time."""

_held: dict[Path, int] = {}
"""{lock file of this process: its descriptor}."""


@contextmanager
def locked(out: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Within it no other process can lock the same OUT; a second `locked` of this process passes.

    Raises UsageError, which names the other process, if OUT is locked; ResourceError if the folder cannot be written to.
    Missing folders above OUT are made, and removed at the end if they are still empty. `warn` gets a line if the disk has
    no locks.
    """
    out = out.expanduser().resolve()
    path = _lock_file(out)
    if path in _held:
        yield
        return
    missing = [folder for folder in out.parents if not folder.exists()]
    _held[path] = _acquire(path, out, warn)
    try:
        yield
    finally:
        handle = _held.pop(path, None)
        if handle is not None:  # None in a copy of the process, which holds nothing
            with suppress(OSError):  # removed while it is locked: the next process finds none, or has to make it again
                path.unlink()
            os.close(handle)
            with suppress(OSError):
                for folder in missing:
                    folder.rmdir()


def holds(out: Path) -> bool:
    """True if this process has locked OUT; False also within `locked` on a disk without locks."""
    handle = _held.get(_lock_file(out.expanduser().resolve()))
    try:
        if handle is not None:
            _flock(handle)  # once more, which changes nothing
    except OSError:
        return False
    return handle is not None


def _lock_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.sapp-lock")


def _acquire(path: Path, out: Path, warn: Callable[[str], None]) -> int:
    """The descriptor of the locked file at `path`."""
    while True:
        with disk_errors(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process removed the folder, which it had made, after its own error
                continue
        try:
            _flock(handle)
        except OSError as error:
            holder = os.pread(handle, 400, 0) if error.errno in TAKEN else b""
            if error.errno in NO_LOCKS:
                warn(f"warning: {out.parent}: the disk has no locks; do not start a second run into {out.name}")
                return handle
            os.close(handle)
            if error.errno in TAKEN:
                raise UsageError(
                    f"{out}: another run is writing there{_described(holder)}; wait for it or stop it, or give another "
                    "folder with -o"
                ) from None
            with disk_errors(out.parent):
                raise
        if _is_at(handle, path):
            with suppress(OSError):  # a full disk takes the lock, but no name in it
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} {_host()} {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            return handle
        os.close(handle)  # the process before removed the file after this one had opened it


def _flock(handle: int) -> None:
    """Lock the open file, or raise OSError at once."""
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "no flock")
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(handle: int, path: Path) -> bool:
    """True if `path` still is the open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _described(holder: bytes) -> str:
    """`: process 4711 since 2026-11-30 19:49:07`, with the machine if it is another; nothing if the file does not say it."""
    match = HOLDER.fullmatch(holder)
    if match is None:
        return ""
    process, host, since = (part.decode() for part in match.groups())
    return f": process {process}{'' if host == _host() else f' on {host}'} since {since}"


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.ASCII)[:255] or "-"


def _let_go() -> None:
    """A fork shares the lock of its parent, and would hold it after the parent's end."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
