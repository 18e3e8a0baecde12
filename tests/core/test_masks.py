"""Hand-worked masks, their gradients, and the penalties they are equivalent to (paper §2.1)."""

import math

import pytest
import torch
from torch import tensor

from sapp_cli.core.masks import (
    as_matrix,
    attention,
    attention_mask,
    block_norms,
    from_matrix,
    scale_blocks,
    spread,
)
from sapp_cli.grid import BlockGrid, MatrixLayout


def test_attention_is_n_times_softmax_with_mean_one():
    logits = tensor([[0.0, math.log(2.0)], [math.log(4.0), 0.0]])
    torch.testing.assert_close(attention(logits), tensor([[0.5, 1.0], [2.0, 0.5]]))


def test_equal_logits_leave_the_weights_untouched_bit_for_bit():
    # n·softmax(0) is not 1 for 610 of these n.
    for n in range(1, 5000):
        assert (attention(torch.zeros(1, n)) == 1).all(), n


def test_the_clip_stops_at_the_density_and_its_inverse():
    logits = tensor([[math.log(7.0), 0.0, 0.0, -20.0]])  # A = 28/9, 4/9, 4/9, ~0
    torch.testing.assert_close(attention_mask(logits, None)[0, 0], tensor(28 / 9))
    torch.testing.assert_close(attention_mask(logits, 0.5), tensor([[2.0, 0.5, 0.5, 0.5]]))


@pytest.mark.parametrize("density", [None, 0.5, 0.9])
def test_the_attention_mask_has_the_gradient_of_its_formula(density):
    # By autograd from n·softmax(L), clamped; with the clamp at 0.9 most blocks are beyond it, and pass nothing on.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    trained = torch.rand(3, 5, generator=generator) < 0.6
    per_block = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    formula = 15 * torch.softmax(torch.where(trained, logits, logits.detach()).flatten(), 0).view(3, 5)
    if density is not None:
        formula = formula.clamp(density, 1 / density)
    (expected,) = torch.autograd.grad((formula * per_block).sum(), logits)
    mask = attention_mask(logits, density, trained)
    (gradient,) = torch.autograd.grad((mask * per_block).sum(), logits)
    torch.testing.assert_close(mask, formula)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[~trained] == 0).all()
    assert (gradient[trained] != 0).any()


def test_the_attention_mask_has_gradients_of_gradients():
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention_mask(x, None), logits)
    assert torch.autograd.gradgradcheck(lambda x: attention_mask(x, None), logits)
    assert torch.autograd.gradgradcheck(lambda x: attention_mask(x, 0.7), logits)


def test_spread_and_norms_on_a_ragged_grid():
    grid = BlockGrid((3, 5), (2, 3))
    per_block = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(per_block, grid).tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]
    matrix = tensor([[1.0, 0, 0, 3, 4], [0, 0, 0, 0, 0], [2, 1, 2, 5, 12]])
    assert block_norms(matrix, grid).tolist() == [[1, 5], [3, 13]]


def test_the_norm_of_a_zero_block_has_gradient_zero():
    matrix = torch.zeros(2, 4, requires_grad=True)
    block_norms(matrix, BlockGrid((2, 4), (2, 2))).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.tolist() == torch.zeros(2, 4).tolist()


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (3, 9)])
def test_scale_blocks_has_the_gradient_of_the_plain_product(size):
    grid = BlockGrid(size, (2, 3))
    torch.manual_seed(0)
    matrix = torch.randn(size, dtype=torch.float64, requires_grad=True)
    per_block = torch.randn(grid.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, p: scale_blocks(m, p, grid), (matrix, per_block))
    rows = torch.arange(size[0])[:, None] // 2
    columns = torch.arange(size[1])[None, :] // 3
    torch.testing.assert_close(scale_blocks(matrix, per_block, grid), matrix * per_block[rows, columns])


@pytest.mark.parametrize(
    ("kind", "shape", "index", "place"),
    [
        ("linear", (3, 4), (2, 1), (2, 1)),
        ("transposed", (4, 3), (1, 2), (2, 1)),
        ("conv", (5, 3, 2, 4), (4, 2, 1, 3), (4, (1 * 4 + 3) * 3 + 2)),  # columns in H, W, C_in order
        ("conv", (5, 3, 7), (4, 2, 6), (4, 6 * 3 + 2)),
        ("conv", (2, 3, 2, 2, 2), (1, 2, 1, 0, 1), (1, 5 * 3 + 2)),
    ],
)
def test_a_weight_as_a_matrix(kind, shape, index, place):
    weight = torch.zeros(shape)
    weight[index] = 1
    layout = MatrixLayout(kind, shape)
    matrix = as_matrix(weight, layout)
    assert matrix.shape == layout.matrix
    assert [tuple(entry) for entry in matrix.nonzero().tolist()] == [place]
    assert torch.equal(from_matrix(matrix, layout), weight)


# The masks of §2.1 are regularizers in disguise: at the best split of a block β = mask · θ into its factors, the penalty
# on the factors is a penalty on β alone. Each lemma is checked by minimizing over the split numerically.


def least(penalty, low=1e-4, high=1e4):
    """The minimum of penalty(m) over a fine logarithmic grid of masks m > 0."""
    return float(penalty(torch.logspace(math.log10(low), math.log10(high), 400_001, dtype=torch.float64)).min())


@pytest.mark.parametrize("norm", [0.3, 1.0, 4.0])
def test_lemma_2_1_an_exponential_mask_is_a_log_sum_penalty(norm):
    # β = exp(L)·θ: min over L of ‖θ‖² + 2L = ‖β‖²·exp(−2L) + 2L is reached where ‖θ‖ = 1, and is 1 + log ‖β‖².
    found = least(lambda mask: norm**2 / mask**2 + 2 * mask.log())
    assert found == pytest.approx(1 + math.log(norm**2), abs=1e-6)


@pytest.mark.parametrize("norm", [0.3, 1.0, 4.0])
def test_lemma_2_2_a_plain_mask_with_l1_penalty_is_an_l_two_thirds_group_penalty(norm):
    # β = m·θ: min over m of ‖β‖²/m² + |m| is reached at m = (2‖β‖²)^(1/3) and grows as ‖β‖^(2/3).
    found = least(lambda mask: norm**2 / mask**2 + mask)
    assert found == pytest.approx(3 * (norm**2 / 4) ** (1 / 3), rel=1e-6)


@pytest.mark.parametrize("norm", [0.3, 1.0, 4.0])
def test_lemma_2_3_block_powerprop_is_the_group_lasso(norm):
    # Ŵ_b = ‖θ_b‖·θ_b: weight decay on θ is ‖θ_b‖² = ‖Ŵ_b‖, the group lasso on Ŵ.
    from sapp_cli.methods import Powerprop

    grid = BlockGrid((4, 4), (4, 4))
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    weight *= norm / weight.norm()
    theta = Powerprop().encode(weight, grid)
    assert float(theta.square().sum()) == pytest.approx(norm, rel=1e-6)
