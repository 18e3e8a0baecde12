"""One budget over all layers: `within_budget`, by hand and against every other choice."""

from fractions import Fraction
from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from sapp_cli.core.selection import floor_count, uniform, within_budget

INF = torch.inf


def kept(keep):
    return {name: mask.flatten().tolist() for name, mask in keep.items()}


def test_the_best_scores_per_cost_fill_the_budget():
    scores = {"cheap": tensor([[3.0, 1.0, 0.5, 0.1]]), "dear": tensor([[10.0, 5.0]])}
    # What 2 blocks of each would cost: 2·1 + 2·4 = 10. Per cost: 3, 1, .5, .1 and 2.5, 1.25.
    keep = within_budget(scores, {"cheap": 2, "dear": 2}, {"cheap": 1, "dear": 4}, {"cheap": 1, "dear": 1})
    assert kept(keep) == {"cheap": [True, True, False, False], "dear": [True, True]}
    # 1·1 + 1·4 = 5, less the floor's 1 + 4: nothing is left.
    keep = within_budget(scores, {"cheap": 1, "dear": 1}, {"cheap": 1, "dear": 4}, {"cheap": 1, "dear": 1})
    assert kept(keep) == {"cheap": [True, False, False, False], "dear": [True, False]}


def test_what_does_not_fit_makes_room_for_what_does():
    scores = {"cheap": tensor([0.4, 0.3, 0.2, 0.1]), "dear": tensor([9.0, 8.0])}
    # Budget 3·1 + 1·4 = 7; the floors take 4 + 1, the second dear block does not fit into 2.
    keep = within_budget(scores, {"cheap": 3, "dear": 1}, {"cheap": 1, "dear": 4}, {"cheap": 1, "dear": 1})
    assert kept(keep) == {"cheap": [True, True, True, False], "dear": [True, False]}


def test_a_floor_keeps_a_layer_that_scores_nothing():
    scores = {"weak": torch.zeros(2, 2), "strong": torch.ones(2, 2)}
    keep = within_budget(scores, {"weak": 2, "strong": 2}, {"weak": 1, "strong": 1}, {"weak": 1, "strong": 1})
    assert kept(keep) == {"weak": [True, False, False, False], "strong": [True, True, True, False]}


def test_ties_go_to_the_earlier_layer_and_the_lower_index():
    scores = {"a": torch.ones(3), "b": torch.ones(3)}
    keep = within_budget(scores, {"a": 2, "b": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert kept(keep) == {"a": [True, True, True], "b": [True, False, False]}


def test_blocks_that_are_gone_do_not_come_back():
    scores = {"a": tensor([-INF, 1.0, -INF]), "b": tensor([1.0, 0.5, -INF])}
    keep = within_budget(scores, {"a": 2, "b": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert kept(keep) == {"a": [False, True, False], "b": [True, True, False]}


def test_a_layer_that_costs_nothing_keeps_its_own_count():
    scores = {"free": tensor([9.0, 8.0, 7.0]), "a": tensor([1.0, 2.0])}
    keep = within_budget(scores, {"free": 2, "a": 1}, {"free": 0, "a": 3}, {"free": 1, "a": 1})
    assert kept(keep) == {"free": [True, True, False], "a": [False, True]}


def test_floor_count_is_exact_and_never_none():
    assert [floor_count(Fraction(1, 5), kept) for kept in (1, 5, 6, 409)] == [1, 5, 6, 82]
    assert [floor_count(Fraction(1, 2), kept) for kept in (7, 8, 9, 15, 16, 17)] == [7, 8, 8, 8, 8, 9]
    assert floor_count(Fraction(0), 100) == 1
    assert floor_count(Fraction(1), 57) == 57


layers = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 5)), min_size=1, max_size=3
)


@given(layers, st.data())
def test_the_choice_fits_and_nothing_left_out_would(drawn, data):
    scores = {str(index): torch.tensor(row, dtype=torch.float32) for index, (row, _) in enumerate(drawn)}
    costs = {str(index): cost for index, (_, cost) in enumerate(drawn)}
    counts = {name: data.draw(st.integers(1, len(score))) for name, score in scores.items()}
    floors = {name: data.draw(st.integers(1, count)) for name, count in counts.items()}
    keep = within_budget(scores, counts, costs, floors)
    budget = sum(counts[name] * costs[name] for name in scores)
    spent = sum(int(mask.sum()) * costs[name] for name, mask in keep.items())
    assert spent <= budget
    assert all(int(keep[name].sum()) >= floors[name] for name in keep)
    assert all(spent + costs[name] > budget for name, mask in keep.items() if not mask.all())
    if len(set(costs.values())) == 1:  # then the greedy choice is the best there is
        best = max(
            sum(
                float(scores[name].sort(descending=True).values[:count].sum())
                for name, count in zip(scores, pick, strict=True)
            )
            for pick in product(*(range(floors[name], len(scores[name]) + 1) for name in scores))
            if sum(count * costs[name] for name, count in zip(scores, pick, strict=True)) <= budget
        )
        assert sum(float(scores[name][mask].sum()) for name, mask in keep.items()) == best


def test_equal_costs_and_full_floors_are_uniform():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, 8, generator=generator) for name in "ab"}
    counts = {"a": 13, "b": 20}
    keep = within_budget(scores, counts, {"a": 1, "b": 1}, counts)
    assert kept(keep) == kept(uniform(scores, counts))


def in_turn(scores, counts, floors):
    """What the docstring says, block by block, for blocks of one price: floors first, then the best of all others."""
    keep = {name: [False] * len(row) for name, row in scores.items()}
    ranked = [
        (-score, layer, index, name)
        for layer, (name, row) in enumerate(scores.items())
        for index, score in enumerate(row.tolist())
        if score > -INF
    ]
    for name, floor in floors.items():
        for _, _, index, _ in sorted(block for block in ranked if block[3] == name)[:floor]:
            keep[name][index] = True
    left = sum(counts.values()) - sum(map(sum, keep.values()))
    for _, _, index, name in sorted(block for block in ranked if not keep[block[3]][block[2]])[:left]:
        keep[name][index] = True
    return keep


@given(
    st.lists(st.lists(st.sampled_from([-INF, 0, 1, 2, 3]), min_size=1, max_size=6), min_size=1, max_size=4), st.data()
)
def test_blocks_of_one_price_are_chosen_as_if_in_turn(rows, data):
    scores = {str(index): torch.tensor(row, dtype=torch.float32) for index, row in enumerate(rows)}
    there = {name: int((score > -INF).sum()) for name, score in scores.items()}
    counts = {name: data.draw(st.integers(min(1, there[name]), there[name])) for name in scores}
    floors = {name: data.draw(st.integers(0, count)) for name, count in counts.items()}
    price = data.draw(st.integers(1, 3))
    assert kept(within_budget(scores, counts, dict.fromkeys(scores, price), floors)) == in_turn(scores, counts, floors)
