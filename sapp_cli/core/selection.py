"""Which blocks stay: exact counts, stable ties (docs/method.md, "Selection").

R, C: block rows and columns.  n = R·C blocks of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor


def final_count(sparsity: Fraction, blocks: int) -> int:
    """Blocks a layer of `blocks` keeps in the end: n − ⌈s·n⌉, and one where that would be none.

    `sparsity` is exact: in floats ⌈0.55·100⌉ is 56.
    """
    return max(1, blocks - math.ceil(sparsity * blocks))


def ramp_count(sparsity: Fraction, blocks: int, share: float) -> int:
    """Blocks kept when `share` in [0, 1] of the target sparsity is reached; exactly the final count at 1."""
    last = final_count(sparsity, blocks)
    if share >= 1:
        return last
    return max(last, blocks - math.floor(sparsity * Fraction(share) * blocks))


def topk_blocks(scores: Tensor, count: int) -> Tensor:
    """The `count` blocks of greatest score, as a bool mask of the same shape; ties go to the lower block index.

    torch.topk's order among equals is arbitrary and differs between devices, so the sort is a stable one.
    """
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    keep = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[order[:count]] = True
    return keep.view(scores.shape)


def uniform(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Each layer by itself (paper App. C.1): {layer: scores (R, C)} and {layer: blocks to keep} -> {layer: keep (R, C)}.

    Takes all layers at once, so that one budget over the whole model can stand in its place.
    """
    return {name: topk_blocks(scores[name], counts[name]) for name in scores}
