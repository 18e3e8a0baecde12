"""Who computes the parts of a job: the OpenMP threads that torch itself uses, or a pool of our own.

torch's own threads are the better choice: they wait for work without sleeping, and two teams of threads on the same
cores would get in each other's way.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

LEAST_WORK = 500_000
"""Multiplications that are worth a thread: some ten microseconds. To bring in another costs one or two while torch's threads
wait without sleeping, as they do where one thread of Python computes; some thirty where several have done so."""


def threads_worth(work: int, threads: int) -> int:
    """How many of the threads that there are so many multiplications are worth; 1 at least."""
    return min(threads, work // LEAST_WORK) or 1


@lru_cache
def openmp() -> Callable[[int, bytes, int, int], None] | None:
    """`GOMP_parallel` (function, its argument, threads, flags) of the OpenMP library in this process, if there is one.

    libgomp and LLVM's libomp both have it. On Windows, and where torch was built without OpenMP, there is none.
    """
    if sys.platform != "linux":
        return None
    process = ctypes.CDLL(None)  # what torch has loaded for all to see
    try:
        parallel = process.GOMP_parallel
        _ = process.omp_get_thread_num, process.omp_get_num_threads
    except AttributeError:
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@lru_cache
def pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads for everything but the part that the caller computes itself. A forked process has none of its parent's."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="sapp")


def run_in_pool(run_part: Any, job: bytes, parts: int) -> None:
    """All parts of a job, one a thread; ctypes lets go of the GIL."""
    others = [pool(parts, os.getpid()).submit(run_part, job, number) for number in range(1, parts)]
    run_part(job, 0)
    for other in others:
        other.result()
