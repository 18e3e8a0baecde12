"""Two budgets at once: `within_two_budgets` by hand, against every other choice, and against the linear-programming bound."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import tensor

from sapp_cli.core.budgets import best_counts, within_budgets, within_two_budgets
from sapp_cli.core.selection import floor_count, uniform, within_budget

INF = torch.inf


def kept(keep):
    return {name: mask.flatten().tolist() for name, mask in keep.items()}


def total(scores, keep):
    return sum(float(scores[name][mask].sum()) for name, mask in keep.items())


def test_both_budgets_hold_where_one_alone_would_be_overspent():
    # Budgets of two blocks each: parameters 2 + 2 = 4, multiply-adds 2·1 + 2·9 = 20. The early layer scores more, and by
    # parameters alone all four blocks would be its own, for 36 multiply-adds.
    scores = {"early": tensor([9.0, 8.0, 7.0, 6.0]), "late": tensor([4.0, 3.0, 2.0, 1.0])}
    counts, floors = {"early": 2, "late": 2}, {"early": 1, "late": 1}
    by_parameters = within_budget(scores, counts, {"early": 1, "late": 1}, floors)
    assert kept(by_parameters) == {"early": [True, True, True, False], "late": [True, False, False, False]}
    keep = within_two_budgets(scores, counts, {"early": (1, 9), "late": (1, 1)}, floors)
    assert kept(keep) == {"early": [True, True, False, False], "late": [True, True, False, False]}


def test_blocks_move_to_where_both_budgets_allow_it():
    # Budgets: parameters 3·2 = 6, multiply-adds 2·(1 + 2 + 3) = 12. Moving one block from the middle layer to each side
    # costs 1 + 3 instead of 2 + 2, and both sides score more.
    scores = {"a": tensor([9.0, 9.0, 9.0]), "b": tensor([1.0, 1.0, 1.0]), "c": tensor([9.0, 9.0, 9.0])}
    costs = {"a": (1, 1), "b": (1, 2), "c": (1, 3)}
    keep = within_two_budgets(scores, dict.fromkeys(scores, 2), costs, dict.fromkeys(scores, 0))
    assert kept(keep) == {"a": [True, True, True], "b": [False, False, False], "c": [True, True, True]}


def test_a_layer_without_multiply_adds_still_pays_for_its_parameters():
    scores = {"pooler": tensor([9.0, 8.0, 7.0]), "query": tensor([3.0, 2.0, 1.0])}
    keep = within_two_budgets(
        scores, {"pooler": 1, "query": 1}, {"pooler": (4, 0), "query": (4, 512)}, {"pooler": 1, "query": 0}
    )
    assert kept(keep) == {"pooler": [True, True, False], "query": [False, False, False]}


def test_a_floor_keeps_a_layer_that_scores_nothing_but_never_more_than_uniform_targets():
    scores = {"weak": torch.zeros(4), "strong": torch.ones(4)}
    costs = {"weak": (1, 1), "strong": (1, 2)}
    keep = within_two_budgets(scores, {"weak": 2, "strong": 2}, costs, {"weak": 3, "strong": 1})
    assert kept(keep) == {"weak": [True, True, False, False], "strong": [True, True, False, False]}


def test_blocks_that_are_gone_do_not_come_back_and_leave_their_share_to_others():
    scores = {"a": tensor([-INF, 1.0, -INF]), "b": tensor([1.0, 0.5, -INF])}
    keep = within_two_budgets(scores, {"a": 2, "b": 2}, {"a": (1, 2), "b": (1, 3)}, {"a": 2, "b": 1})
    assert kept(keep) == {"a": [False, True, False], "b": [True, True, False]}


def test_ties_go_to_the_earlier_layer_and_the_lower_index():
    scores = {"a": torch.ones(3), "b": torch.ones(3)}
    keep = within_two_budgets(scores, {"a": 2, "b": 2}, {"a": (1, 5), "b": (1, 5)}, {"a": 1, "b": 1})
    assert kept(keep) == {"a": [True, True, True], "b": [True, False, False]}


layers = st.lists(
    st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.tuples(st.integers(1, 4), st.integers(0, 9))),
    min_size=1,
    max_size=4,
)


def drawn_problem(drawn, data):
    scores = {str(index): torch.tensor(row, dtype=torch.float32) for index, (row, _) in enumerate(drawn)}
    costs = {str(index): cost for index, (_, cost) in enumerate(drawn)}
    counts = {name: data.draw(st.integers(1, len(score))) for name, score in scores.items()}
    floors = {name: data.draw(st.integers(0, count)) for name, count in counts.items()}
    return scores, counts, costs, floors


def spent(counts, costs):
    return [sum(counts[name] * costs[name][budget] for name in counts) for budget in (0, 1)]


@given(layers, st.data())
def test_both_budgets_hold_no_block_fits_any_more_and_uniform_targets_never_score_more(drawn, data):
    scores, counts, costs, floors = drawn_problem(drawn, data)
    keep = within_two_budgets(scores, counts, costs, floors)
    budgets, used = spent(counts, costs), spent({name: int(mask.sum()) for name, mask in keep.items()}, costs)
    assert all(mine <= most for mine, most in zip(used, budgets, strict=True))
    for name, mask in keep.items():
        assert int(mask.sum()) >= floors[name]
        if not mask.all():
            assert any(mine + cost > most for mine, cost, most in zip(used, costs[name], budgets, strict=True))
    assert total(scores, keep) >= total(scores, uniform(scores, counts)) * (1 - 1e-12)


@settings(max_examples=60)
@given(layers, st.data())
def test_against_every_choice_there_is_less_than_two_blocks_are_missing(drawn, data):
    scores, counts, costs, _ = drawn_problem(drawn, data)
    mine = total(scores, within_two_budgets(scores, counts, costs, dict.fromkeys(scores, 0)))
    budgets = spent(counts, costs)
    choices = [
        dict(zip(scores, numbers, strict=True))
        for numbers in product(*[range(len(score) + 1) for score in scores.values()])
    ]
    best = max(
        sum(float(scores[name].sort(descending=True).values[:count].sum()) for name, count in choice.items())
        for choice in choices
        if all(used <= most for used, most in zip(spent(choice, costs), budgets, strict=True))
    )
    assert best - 2 * max(float(score.max()) for score in scores.values()) <= mine <= best


@given(layers, st.data())
def test_two_equal_budgets_are_one(drawn, data):
    scores, counts, _, floors = drawn_problem(drawn, data)
    one = within_budgets(scores, counts, dict.fromkeys(scores, (3,)), floors)
    two = within_budgets(scores, counts, dict.fromkeys(scores, (3, 3)), floors)
    assert total(scores, one) == pytest.approx(total(scores, two))
    assert [int(mask.sum()) for mask in one.values()] == [int(mask.sum()) for mask in two.values()]


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_to_the_linear_programming_bound_is_less_than_a_thousandth(seed):
    # Six layers of 2,000 blocks, a tenth kept: the sizes of a ResNet's stages, whose multiply-adds a block differ by 784.
    random = np.random.default_rng(seed)
    costs = [(256, 256 * positions) for positions in (784, 196, 49, 16, 4, 1)]
    scales = 10 ** random.uniform(-0.3, 0.3, 6) * np.sqrt([second for _, second in costs])
    ranked = [np.sort(random.exponential(scale=scale, size=2000))[::-1].copy() for scale in scales]
    wanted = np.full(6, 200)
    counts = best_counts(ranked, costs, wanted)
    shares = np.array(costs) / (wanted @ np.array(costs))
    bound = linprog(
        -np.concatenate(ranked), A_ub=np.repeat(shares, 2000, axis=0).T, b_ub=[1, 1], bounds=(0, 1), method="highs"
    )
    mine = sum(values[:count].sum() for values, count in zip(ranked, counts, strict=True))
    assert (counts @ shares <= 1 + 1e-12).all()
    assert -bound.fun * (1 - 1e-3) <= mine <= -bound.fun * (1 + 1e-9)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_floor_never_exceeds_uniform_and_both_budgets_hold(data):
    names = ["a", "b", "c"]
    sizes = {name: data.draw(st.integers(1, 300)) for name in names}
    counts = {name: data.draw(st.integers(1, size)) for name, size in sizes.items()}
    costs = {name: (data.draw(st.integers(1, 9)), data.draw(st.integers(0, 9))) for name in names}
    floor = Fraction(data.draw(st.integers(0, 100)), 100)
    floors = {name: floor_count(floor, count) for name, count in counts.items()}
    assert all(1 <= floors[name] <= counts[name] for name in names)
    assert floor == 0 or all(floors[name] >= min(8, counts[name]) for name in names)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = {
        name: torch.rand(size, generator=generator) * 10.0**index for index, (name, size) in enumerate(sizes.items())
    }
    keep = within_two_budgets(scores, counts, costs, floors)
    assert all(int(keep[name].sum()) >= floors[name] for name in names)
    for budget in (0, 1):
        spent = sum(int(keep[name].sum()) * costs[name][budget] for name in names)
        assert spent <= sum(counts[name] * costs[name][budget] for name in names)
