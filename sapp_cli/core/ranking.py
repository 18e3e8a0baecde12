"""Whether scores rank the blocks of a layer, or would only say where a block lies.

R, C: block rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Of a sum over a block, relative, for each √(entries of a whole block)."""


def why_unranked(scores: Tensor, blocks: Tensor, grid: BlockGrid) -> str | None:
    """Why these scores (R, C) cannot rank the `blocks`, bool (R, C); None if they can.

    Among equal scores the lower block index stays, so a layer whose scores are all equal would lose its last block rows. A
    ragged block holds fewer entries than a whole one. Scores that differ by √entries alone, as the norms of a constant weight
    do, count as equal.
    """
    found = scores[blocks]
    if not bool(torch.isfinite(found).all()):
        return "its scores are not finite"
    if found.numel() < 2:
        return None
    if not bool(found.any()):
        return "its scores are all zero"
    if _even(found, 0.0):
        return "its scores are all equal"
    if grid.ragged:
        roots = block_entries(grid).sqrt().to(scores.device)[blocks]
        if _even(found.float() / roots, ROUNDING * (grid.block[0] * grid.block[1]) ** 0.5):
            return "its scores differ by the size of the blocks alone"
    return None


def block_entries(grid: BlockGrid) -> Tensor:
    """Entries of each block, float32 (R, C): fewer at ragged edges."""
    rows, columns = (
        torch.tensor([stop - start for start, stop in (grid.extent(axis, index) for index in range(grid.size[axis]))])
        for axis in (0, 1)
    )
    return (rows[:, None] * columns).float()


def _even(values: Tensor, tolerance: float) -> bool:
    most = values.max()
    return bool(most - values.min() <= tolerance * most.abs())
