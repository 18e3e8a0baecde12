"""How the product of one batch is cut into parts, one a thread."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import numpy as np

from sapp_cli.checkpoint.block_sparse import Indices

Part: TypeAlias = tuple[int, int, int, int]
"""First and one-past-last row of x, first and one-past-last block row."""
LEAST_ROWS = 24
"""Rows of x that are worth a thread of their own; with fewer, tiles get low."""


def cut_into_parts(rows: int, crow: Indices, threads: int) -> list[Part]:
    """At most `threads` parts of nearly equal work: by rows of x where there are many, else by block rows."""
    block_rows = len(crow) - 1
    if threads == 1:
        return [(0, rows, 0, block_rows)]
    if rows >= LEAST_ROWS * threads:
        cuts = [rows * number // threads for number in range(threads + 1)]
        return [(first, last, 0, block_rows) for first, last in pairwise(cuts)]
    return [(0, rows, first, last) for first, last in cut_block_rows(crow, threads)]


def cut_block_rows(crow: Indices, threads: int) -> list[tuple[int, int]]:
    """Block rows of nearly equal work for each thread, first and one past the last; none that is empty."""
    goals = crow[-1] * np.arange(1, threads) / threads
    cuts = [0, *np.searchsorted(crow, goals).tolist(), len(crow) - 1]
    return [(first, last) for first, last in pairwise(cuts) if first < last]
