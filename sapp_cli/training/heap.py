"""Memory that one training step frees and the next asks for again: kept by the process, not handed back and forth.

Activations and gradients of a few megabytes come and go with every step. glibc returns the top of its heap to the system when
they are gone, and the next step pays for every page of it again as it is touched first; in a sparse phase, where the products
are fast, that was a sixth of a step.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""
NEVER = -1
LARGEST_ON_HEAP = 16 << 20
"""Bytes; larger pieces are mapped one by one and unmapped when freed: a heap of few large ones holds a fifth more in gaps."""
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask the C library for it, for the rest of this process; False where it has no such thing or the user chose otherwise."""
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in CHOSEN_BY_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Either alone would end glibc's adapting of the other, and make things worse.
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP) and mallopt(TRIM_THRESHOLD, NEVER))
