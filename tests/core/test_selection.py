from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from sapp_cli.core.selection import ramp_count, topk_blocks, uniform
from sapp_cli.grid import final_count
from sapp_cli.recipe.prune_section import exact


def test_topk_keeps_the_greatest_scores():
    scores = tensor([[3.0, 1.0], [2.0, 4.0]])
    assert topk_blocks(scores, 2).tolist() == [[True, False], [False, True]]


def test_ties_go_to_the_lower_block_index():
    scores = tensor([[1.0, 2.0, 1.0], [2.0, 1.0, 1.0]])
    assert topk_blocks(scores, 4).tolist() == [[True, True, True], [True, False, False]]


@given(st.integers(1, 40), st.data())
def test_topk_against_a_plain_sort(blocks, data):
    scores = data.draw(st.lists(st.integers(0, 5), min_size=blocks, max_size=blocks))
    count = data.draw(st.integers(1, blocks))
    best = sorted(range(blocks), key=lambda index: (-scores[index], index))[:count]
    keep = topk_blocks(torch.tensor(scores, dtype=torch.float32).view(1, -1), count)
    assert sorted(best) == keep.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("sparsity", "blocks", "kept"),
    [
        (0.9, 4096, 409),  # ⌈3686.4⌉ = 3687 go
        (0.55, 100, 45),  # in floats 0.55·100 is 55.000000000000007, and ⌈·⌉ 56
        (0.9, 100, 10),
        (0.3, 10, 7),
        (0.1, 10, 9),
        (0.99, 100, 1),
        (0.995, 100, 1),  # none would be left
        (1e-3, 5, 4),  # ⌈0.005⌉ = 1 goes
    ],
)
def test_final_count_by_hand(sparsity, blocks, kept):
    assert final_count(exact(sparsity), blocks) == kept


def test_every_layer_is_selected_by_itself():
    scores = {"small": tensor([[0.1, 0.2]]), "large": tensor([[10.0, 20.0]])}
    keep = uniform(scores, {"small": 1, "large": 1})
    assert keep["small"].tolist() == [[False, True]]
    assert keep["large"].tolist() == [[False, True]]


@given(st.fractions(0, 1).filter(lambda s: s < 1), st.integers(1, 3000), st.lists(st.floats(0, 1), max_size=20))
def test_the_ramp_only_shrinks_and_ends_at_the_final_count(sparsity, blocks, shares):
    counts = [ramp_count(sparsity, blocks, share) for share in [*sorted(shares), 1.0]]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == final_count(sparsity, blocks)


def test_ramp_count_by_hand():
    # n = 10, s = 0.75, k_final = 10 − 8 = 2. Half of the sparsity: ⌊3.75⌋ = 3 go; all but a little: ⌊7.4⌋ = 7.
    assert [ramp_count(Fraction(3, 4), 10, share) for share in (0.0, 0.5, 0.99, 1.0)] == [10, 7, 3, 2]
