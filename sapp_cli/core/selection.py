"""Which blocks stay: exact counts, stable ties (docs/method.md, "Selection").

R, C: block rows and columns.  n = R·C blocks of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from sapp_cli.grid import final_count


@lru_cache(maxsize=64)
def ramp_count(sparsity: Fraction, blocks: int, share: float) -> int:
    """Blocks kept when `share` in [0, 1] of the target sparsity is reached; exactly the final count at 1."""
    last = final_count(sparsity, blocks)
    if share >= 1:
        return last
    return max(last, blocks - math.floor(sparsity * Fraction(share) * blocks))


def topk_blocks(scores: Tensor, count: int) -> Tensor:
    """The `count` blocks of greatest score, as a bool mask of the same shape; ties go to the lower block index.

    torch.topk's order among equals is arbitrary and differs between devices: it is asked for the least score alone.
    """
    if not 0 < count < scores.numel():
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    flat = scores.flatten()
    least = torch.topk(flat, count, sorted=False).values.min()
    above, ties = flat > least, flat == least
    wanted = count - above.sum()
    return (above | (ties & (ties.cumsum(0) <= wanted))).view(scores.shape)


def uniform(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Each layer by itself (paper App. C.1): {layer: scores (R, C)} and {layer: blocks to keep} -> {layer: keep (R, C)}.

    Takes all layers at once, so that one budget over the whole model can stand in its place.
    """
    return {name: topk_blocks(scores[name], counts[name]) for name in scores}


def within_budget(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], costs: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """One budget over all layers: the blocks that score most for what they cost -> {layer: keep (R, C)}.

    The budget is what `counts` blocks of each layer would cost together; `costs` are those of one block, in any unit. Each
    layer keeps its best `floors` blocks first, so that none is wiped out. The rest goes to the best score per cost, passing
    over blocks that no longer fit. Ties go to the earlier layer, then to the lower block index; blocks of score −∞ are gone.
    A layer whose blocks cost nothing has no part in the budget and keeps its own count.
    """
    free = [name for name in scores if not costs[name]]
    keep = {name: topk_blocks(scores[name], counts[name]) for name in free}
    priced = [name for name in scores if name not in free]
    if not priced:
        return keep
    one_price = len({costs[name] for name in priced}) == 1
    if one_price and (best := _best_of_all(priced, scores, counts, floors)) is not None:
        return keep | best
    keep |= {name: topk_blocks(scores[name], floors[name]) for name in priced}
    budget = sum((counts[name] - min(floors[name], _there(scores[name]))) * costs[name] for name in priced)
    # On the CPU and in doubles: one order of all blocks, whatever the device.
    ratios = torch.cat(
        [
            (scores[name].cpu().double() / costs[name]).masked_fill(keep[name].cpu(), -torch.inf).flatten()
            for name in priced
        ]
    )
    prices = torch.cat([torch.full((scores[name].numel(),), costs[name]) for name in priced])
    order = torch.sort(ratios, descending=True, stable=True).indices
    order = order[~torch.isneginf(ratios[order])]
    bought = torch.zeros_like(ratios, dtype=torch.bool)
    while len(order):  # once for each price at most: whatever costs as much as the first that does not fit goes with it
        order = order[prices[order] <= budget]
        spent = prices[order].cumsum(0)
        fitting = int((spent <= budget).sum())
        bought[order[:fitting]] = True
        budget -= int(spent[fitting - 1]) if fitting else 0
        order = order[fitting:]
    for name, mine in zip(priced, torch.split(bought, [scores[name].numel() for name in priced]), strict=True):
        keep[name] |= mine.view(scores[name].shape).to(keep[name].device)
    return keep


def _best_of_all(
    names: list[str], scores: Mapping[str, Tensor], counts: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, Tensor] | None:
    """`within_budget` where each block costs as much as any other, in few operations on all layers at once.

    None where that would leave a layer less than its floor, which is seldom so.
    """
    sizes = [scores[name].numel() for name in names]
    every = torch.cat([scores[name].flatten().cpu() for name in names])
    best = topk_blocks(every, sum(counts[name] for name in names)) & ~torch.isneginf(every)
    so_far = [0, *best.cumsum(0)[torch.tensor(sizes).cumsum(0) - 1].tolist()]
    if any(after - before < floors[name] for name, (before, after) in zip(names, pairwise(so_far), strict=True)):
        return None
    parts = zip(names, torch.split(best, sizes), strict=True)
    return {name: part.view(scores[name].shape).to(scores[name].device) for name, part in parts}


LEAST_BLOCKS = 8
"""Of a small layer: 4 of 144 blocks of a convolution, half of what its target left, connected too little of it."""


@lru_cache(maxsize=64)
def floor_count(floor: Fraction, kept: int) -> int:
    """Blocks that a layer keeps in any case: the share `floor` of the `kept` ones of its own target, and at least 8 of them.

    Never more than `kept`. A floor of 0 leaves one.
    """
    if not floor:
        return 1
    return max(1, min(kept, max(math.ceil(floor * kept), LEAST_BLOCKS)))


def _there(scores: Tensor) -> int:
    return int((~torch.isneginf(scores)).sum())
