"""Two folders exchanged in one step, so that a name always leads to one: `renameat2` on Linux, `renamex_np` on macOS."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

Swap: TypeAlias = Callable[[bytes, bytes], int]

AT_FDCWD = -100  # a path is relative to the current folder
RENAME_EXCHANGE = 2  # of Linux
RENAME_SWAP = 2  # of macOS
SYSCALL_NUMBERS = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347, "armv7l": 382}
"""Of renameat2, for a libc that does not name it."""

NOT_OFFERED = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP}
    | {errno.EPERM}  # of a container that does not know the call
)
"""What a system answers that cannot exchange these two, though it may rename each of them."""


def exchange(one: Path, other: Path) -> bool:
    """Let each of two paths lead to what the other led to, in one step. False, with nothing done, if that is not offered here.

    Raises OSError if the system offers it and it fails.
    """
    swap = swap_function()
    if swap is None:
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)  # as for every other rename
    ctypes.set_errno(0)
    if swap(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@lru_cache
def swap_function() -> Swap | None:
    """The system's call, 0 on success and else with an errno; None if it has none."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        if not hasattr(library, "renamex_np"):
            return None
        renamex = library.renamex_np
        renamex.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
        return lambda one, other: int(renamex(one, other, RENAME_SWAP))
    if hasattr(library, "renameat2"):
        renameat2 = library.renameat2
        renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        return lambda one, other: int(renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE))
    number = SYSCALL_NUMBERS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return None
    syscall = library.syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = [*(ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)]
    return lambda one, other: int(syscall(number, AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE))
