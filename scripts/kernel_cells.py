"""What the benchmarks of the kernels share: a random choice of blocks, and the figures of one measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid

Y = TypeVar("Y")


@dataclass(frozen=True)
class KernelCell:
    """One measurement. Letters as in sapp_cli/grid.py; `rows` of x."""

    matrix: tuple[int, int]
    block: tuple[int, int]
    sparsity: float
    rows: int
    dtype: str
    seconds: dict[str, float]
    """Median of each way."""
    least: dict[str, float]
    """The least disturbed turn of each way."""


def kept_at_random(grid: BlockGrid, sparsity: float, generator: torch.Generator) -> Tensor:
    """bool (R, C): a random share of the blocks is kept."""
    kept = torch.zeros(grid.count, dtype=torch.bool)
    kept[torch.randperm(grid.count, generator=generator)[: round(grid.count * (1 - sparsity))]] = True
    return kept.view(grid.size)


def bound(way: Callable[[Tensor], Y], x: Tensor) -> Callable[[], Y]:
    """The way with its x, to be called without arguments."""
    return lambda: way(x)


def sides(text: str) -> tuple[int, int]:
    """(4096, 11008) of "4096x11008", (16, 16) of "16"."""
    rows, _, columns = text.partition("x")
    return int(rows), int(columns or rows)
