"""Which blocks stay under one budget or two (docs/method.md, "Where the blocks go").

A budget is what uniform targets would leave of a resource: parameters, multiply-adds or time. The blocks of greatest total
score within the budgets solve a knapsack problem. Blocks of equal costs form a class. Of a class the best blocks are taken,
so a choice is one number a class.

G: classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapp_cli.core.selection import topk_blocks, within_budget

Costs = tuple[int, ...]
"""What one block takes of each budget, in the budgets' own units."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

TRIED_AT_ONCE = 16  # values of λ, between the two that enclose the right one
ROUNDS = 5  # λ is then known to 17⁻⁵, about 7e-7
HALVINGS = 40  # of a threshold, relative to the greatest score per price


def within_budgets(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], costs: Mapping[str, Costs], floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """The blocks of greatest total score within the budgets: {layer: keep (R, C)}.

    Each budget is what `counts` blocks of each layer take of it; `costs` has one number a budget, one or two in all.
    """
    if all(len(cost) == 1 for cost in costs.values()):
        return within_budget(scores, counts, {name: cost[0] for name, cost in costs.items()}, floors)
    return within_two_budgets(scores, counts, costs, floors)


def within_two_budgets(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], costs: Mapping[str, Costs], floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """The blocks of greatest total score that both budgets pay for -> {layer: keep (R, C)}.

    Each budget is what `counts` blocks of each layer would take of it. `costs` are those of one block; the first is at
    least 1. Each layer keeps its best `floors` blocks first, at most its count. The total score is never below that of the
    best `counts` blocks of each layer, which both budgets always pay for. Ties go to the earlier layer, then to the lower
    block index; blocks of score −∞ are gone.
    """
    keep = {
        name: topk_blocks(score, min(floors[name], counts[name])) & ~torch.isneginf(score)
        for name, score in scores.items()
    }
    classes: dict[Costs, list[str]] = {}
    for name in scores:
        classes.setdefault(costs[name], []).append(name)
    # On the CPU and in doubles: one order of all blocks, whatever the device.
    flat = {
        price: torch.cat([_left(scores[name], keep[name]).cpu().double().flatten() for name in names])
        for price, names in classes.items()
    }
    order = {price: torch.sort(values, descending=True, stable=True) for price, values in flat.items()}
    ranked = [values[: int((values > -torch.inf).sum())].numpy() for values, _ in order.values()]
    wanted = np.array([sum(counts[name] - int(keep[name].sum()) for name in names) for names in classes.values()])
    taken = best_counts(ranked, list(classes), wanted)
    for (price, names), count in zip(classes.items(), taken, strict=True):
        bought = torch.zeros_like(flat[price], dtype=torch.bool)
        bought[order[price].indices[: int(count)]] = True
        for name, mine in zip(names, torch.split(bought, [scores[name].numel() for name in names]), strict=True):
            keep[name] = keep[name] | mine.view(scores[name].shape).to(keep[name].device)
    return keep


def _left(scores: Tensor, taken: Tensor) -> Tensor:
    return scores.masked_fill(taken, -torch.inf)


def best_counts(ranked: Sequence[Floats], costs: Sequence[Costs], wanted: Counts) -> Counts:
    """How many blocks of each of G classes to take: (G,).

    `ranked`: the scores of each class, descending and not negative. The budgets are what `wanted` blocks of each class
    cost. The result has the greater total score of two feasible choices, each filled up greedily: `wanted` itself, and the
    optimum of the surrogate problem, in which one price λ·first + (1 − λ)·second stands for both costs.
    """
    there = np.array([len(values) for values in ranked])
    prices = np.array(costs, dtype=np.int64).reshape(-1, 2)
    budgets = wanted @ prices
    problem = _Problem(ranked, there, prices, budgets)
    choices = [problem.fill(np.minimum(wanted, there)), problem.fill(problem.surrogate())]
    return max(choices, key=problem.total)  # max gives the first of equals


@dataclass(frozen=True)
class _Problem:
    """Two budgets, and G classes of blocks that spend them."""

    ranked: Sequence[Floats]
    there: Counts  # (G,) blocks to be had
    prices: Counts  # (G, 2) of one block, in units
    budgets: Counts  # (2,) in units

    def total(self, counts: Counts) -> float:
        return float(sum(values[:count].sum() for values, count in zip(self.ranked, counts, strict=True)))

    @property
    def shares(self) -> Floats:
        """(G, 2): what a block takes of each budget; of an empty budget everything takes too much."""
        shares: Floats = np.where(self.prices == 0, 0.0, self.prices / np.maximum(self.budgets, 1e-3))
        return shares

    def surrogate(self) -> Counts:
        """(G,): counts within both budgets, from the λ at which the surrogate's optimum spends both alike."""
        low, high = 0.0, 1.0
        ends = self._at(np.array([high, low]))
        for alone in ends:  # one budget decides, and the other holds by itself
            if (alone @ self.prices <= self.budgets).all():
                return alone
        under, over = ends
        for _ in range(ROUNDS):
            tried = low + (high - low) * np.arange(1, TRIED_AT_ONCE + 1) / (TRIED_AT_ONCE + 1)
            found = self._at(tried)
            used = np.stack(found) @ self.shares
            # A greater λ makes the first budget dearer. The last λ at which it is still the more spent one is enclosed.
            more = np.flatnonzero(used[:, 0] > used[:, 1])
            last = int(more[-1]) if len(more) else -1
            if last >= 0:
                low, over = float(tried[last]), found[last]
            if last + 1 < len(tried):
                high, under = float(tried[last + 1]), found[last + 1]
        # At `low` the second budget holds, at `high` the first: what both take, both budgets pay for.
        both: Counts = np.minimum(under, over)
        return both

    def _at(self, lambdas: Floats) -> list[Counts]:
        """For each λ the best counts (G,) whose price λ·first + (1 − λ)·second is at most 1.

        Score per price ranks all blocks; the threshold is halved until it is as low as the budget allows.
        """
        ascending = [np.ascontiguousarray(values[::-1]) for values in self.ranked]
        weights = np.maximum(np.stack([lambdas, 1 - lambdas], axis=1) @ self.shares.T, 1e-300)  # (λ, G)
        best = np.array([values[0] if len(values) else 0.0 for values in self.ranked])
        low, high = np.zeros(len(lambdas)), (best / weights).max(axis=1) * 2 + 1e-300
        bought = np.zeros(weights.shape, dtype=np.int64)
        everything = (self.there * weights).sum(axis=1) <= 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            counts = np.stack(
                [
                    len(values) - np.searchsorted(values, middle * weights[:, g], side="left")
                    for g, values in enumerate(ascending)
                ],
                axis=1,
            )
            fits = (counts * weights).sum(axis=1) <= 1
            bought[fits] = counts[fits]
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        bought[everything] = self.there
        return list(bought)

    def fill(self, counts: Counts) -> Counts:
        """Spend what `counts` leave of the budgets, block by block.

        The next block has the greatest score for what it takes of what is left of both budgets. A class whose block no
        longer fits is done.
        """
        counts = counts.copy()
        prices = self.prices.tolist()
        while True:
            left = (self.budgets - counts @ self.prices).tolist()
            best, best_worth = None, -1.0
            for g, price in enumerate(prices):
                if counts[g] < self.there[g] and all(cost <= units for cost, units in zip(price, left, strict=True)):
                    share = sum(cost / max(units, 1) for cost, units in zip(price, left, strict=True))
                    worth = float(self.ranked[g][counts[g]]) / share
                    if worth > best_worth:
                        best, best_worth = g, worth
            if best is None:
                return counts
            counts[best] += 1
