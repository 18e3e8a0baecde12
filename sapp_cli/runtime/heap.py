"""Memory that one pass through a model frees and the next asks for again: kept by the process, not handed back and forth.

Activations of some megabytes come and go with every pass. glibc returns the top of its heap to the system when they are gone,
and maps large ones one by one; the next pass pays for every page again as it is touched first. Where products are as fast as
block-sparse ones that is up to two fifths of the time (docs/runtime.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
"""Parameters of mallopt, from glibc's malloc.h."""
NEVER = -1
CHOSEN_BY_USER = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
)
LARGEST_IN_TRAINING = 16 << 20
"""Bytes. In a training step the heap would hold a fifth more in gaps between a few large pieces."""


def keep_freed_memory(largest: int | None = None) -> bool:
    """Keep what is freed for what is asked for next, in the rest of this process.

    For inference on a CPU: call it once, before other threads begin. The process stays as large as it once was.

    `largest`: pieces of more bytes are mapped one by one, as glibc does, and unmapped when they are freed. None: none is, and
    all threads share one heap, since glibc cuts down those of threads whatever it is told.

    False, and nothing changes, where the C library is not glibc or a variable of the environment has settled it (MALLOC_… or
    GLIBC_TUNABLES).
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in CHOSEN_BY_USER):
        return False
    # Either of two alone would end glibc's adapting of the other, and make things worse.
    wanted = {MMAP_MAX: 0, ARENA_MAX: 1} if largest is None else {MMAP_THRESHOLD: largest}
    mallopt = ctypes.CDLL(None).mallopt
    heeded = [mallopt(parameter, value) for parameter, value in {**wanted, TRIM_THRESHOLD: NEVER}.items()]
    return all(heeded)
