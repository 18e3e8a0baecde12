"""How a damaged file is spoken of: its path, the tensor in quotes, what is wrong, what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from sapp_cli.errors import CheckpointError
from sapp_cli.visible import printable

LONGEST_QUOTE = 120
AGAIN = "download or copy the file again"
POINTER = b"version https://git-lfs"
"""What a file begins with that Git LFS has not fetched yet."""
FETCH = "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder"


def quoted(name: object) -> str:
    """A name out of a file as it can be printed anywhere: control characters escaped, cut in the middle when long."""
    text = f"'{printable(name)}'" if isinstance(name, str) else ascii(name)
    if len(text) <= LONGEST_QUOTE:
        return text
    half = (LONGEST_QUOTE - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def absence(path: Path) -> str:
    """Why there is no file to read."""
    if path.exists():
        return "is not a regular file"
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself; give another path"
    return f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"


def damaged(path: Path | str, problem: str, tensor: str | None = None) -> CheckpointError:
    """The error `path: 'tensor': problem`, for its caller to raise."""
    place = f"{path}: " if tensor is None else f"{path}: {quoted(tensor)}: "
    return CheckpointError(place + problem)
