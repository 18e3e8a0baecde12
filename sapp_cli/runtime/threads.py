"""How a job is cut into parts and who computes them: the OpenMP threads that torch itself uses, or a pool of our own.

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
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from sapp_cli.checkpoint.block_sparse import Indices

Part: TypeAlias = tuple[int, int, int, int]
"""First and one-past-last row of x, first and one-past-last block row."""
LEAST_WORK = 1_000_000
"""Multiplications that are worth a thread: some twenty microseconds, several times what it costs to bring in another."""
LEAST_ROWS = 24
"""Rows of x that are worth a thread of their own; with fewer, tiles get low."""


def threads_worth(work: int, threads: int) -> int:
    """How many of the threads that there are so many multiplications are worth; 1 at least."""
    return min(threads, work // LEAST_WORK) or 1


def cut_into_parts(rows: int, crow: Indices, threads: int) -> list[Part]:
    """At most `threads` parts of nearly equal work: by rows of x where there are many, else by block rows."""
    block_rows = len(crow) - 1
    if threads == 1:
        return [(0, rows, 0, block_rows)]
    if rows >= LEAST_ROWS * threads:
        cuts = [rows * number // threads for number in range(threads + 1)]
        return [(first, last, 0, block_rows) for first, last in pairwise(cuts)]
    goals = crow[-1] * np.arange(1, threads) / threads
    cuts = [0, *np.searchsorted(crow, goals).tolist(), block_rows]
    return [(0, rows, first, last) for first, last in pairwise(cuts) if first < last]


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
