"""Large matrices: the same numbers as for small ones, in memory that is used again."""

import copy

import pytest
import torch
from torch import nn

from sapp_cli.core.masks import SMALL, as_blocks, block_norms, scale_blocks, spread
from sapp_cli.core.workspace import Workspace
from sapp_cli.grid import BlockGrid

GRID = BlockGrid((512, 384), (16, 32))
assert GRID.matrix[0] * GRID.matrix[1] >= SMALL


@pytest.fixture
def large():
    """(matrix, value of each block, gradient of the product), seed 0; the last block rows make a smaller pass."""
    torch.manual_seed(0)
    return (
        torch.randn(GRID.matrix, requires_grad=True),
        torch.rand(GRID.size, requires_grad=True),
        torch.randn(512, 384),
    )


def test_memory_is_handed_out_again_only_when_nothing_uses_it():
    workspace, shape = Workspace(), torch.empty(3, 4)
    first = workspace.like(shape)
    at = first.data_ptr()
    view = first.view(-1)[5:]
    del first
    other = workspace.like(shape)
    assert other.data_ptr() != at  # a view still looks at the first
    later = other.data_ptr()
    del other, view
    again = workspace.like(shape)
    assert again.data_ptr() == later
    assert again.shape == (3, 4)
    assert workspace.like(torch.empty(5)).shape == (5,)


def test_a_copied_workspace_shares_nothing():
    workspace = Workspace()
    at = workspace.like(torch.empty(4)).data_ptr()
    assert copy.deepcopy(workspace).like(torch.empty(4)).data_ptr() != at


@pytest.mark.parametrize("turned", [False, True], ids=["stored by rows", "stored by columns"])
@pytest.mark.parametrize("workspace", [None, Workspace()])
def test_product_and_gradient_of_the_matrix_have_the_bits_of_the_plain_ones(large, turned, workspace):
    matrix, per_block, grad = large
    stored = matrix.detach().t().contiguous().t() if turned else matrix.detach()
    stored.requires_grad_()
    for _ in range(2):  # the second time in the memory of the first
        stored.grad = per_block.grad = None
        product = scale_blocks(stored, per_block, GRID, workspace)
        assert torch.equal(product, stored * spread(per_block, GRID))
        product.backward(grad.t().contiguous().t() if turned else grad)
        assert torch.equal(stored.grad, grad * spread(per_block, GRID))
        exact = (as_blocks(grad.double(), GRID) * as_blocks(stored.detach().double(), GRID)).sum((1, 3))
        torch.testing.assert_close(per_block.grad.double(), exact, rtol=1e-5, atol=1e-4)


def test_the_gradient_lies_where_the_product_lay(large):
    matrix, per_block, _ = large
    workspace = Workspace()
    x = torch.ones(2, 384)
    places = set()
    for _ in range(3):
        product = scale_blocks(matrix, per_block, GRID, workspace)
        places.add(product.data_ptr())
        loss = nn.functional.linear(x, product).sum()
        del product
        loss.backward()
        places.add(matrix.grad.data_ptr())
        matrix.grad = None
    assert len(places) == 1


def test_products_that_are_alive_together_do_not_meet(large):
    matrix, per_block, grad = large
    workspace = Workspace()
    first, second = (scale_blocks(matrix, per_block, GRID, workspace) for _ in range(2))
    (first * second).backward(grad)  # 2·g·W·A² for the matrix
    expected = 2 * grad * matrix.detach() * spread(per_block.detach(), GRID) ** 2
    torch.testing.assert_close(matrix.grad, expected)


def test_gradients_of_gradients(large):
    matrix, per_block, _ = large
    product = scale_blocks(matrix, per_block, GRID, Workspace())
    (slope,) = torch.autograd.grad(product.square().sum(), matrix, create_graph=True)  # 2·W·A²
    slope.sum().backward()
    torch.testing.assert_close(matrix.grad, 2 * spread(per_block.detach(), GRID) ** 2)


def test_norms_of_large_matrices(large):
    matrix, *_ = large
    exact = as_blocks(matrix.detach().double(), GRID).square().sum((1, 3)).sqrt().float()
    torch.testing.assert_close(block_norms(matrix.detach(), GRID), exact, rtol=1e-6, atol=0)
    assert block_norms(matrix, GRID).requires_grad


def test_equal_blocks_have_equal_norms_wherever_they_lie():
    for block in ((16, 32), (8, 8), (4, 128)):
        grid = BlockGrid(GRID.matrix, block)
        one = torch.randn(block, generator=torch.Generator().manual_seed(1))
        assert len(block_norms(one.repeat(grid.size), grid).unique()) == 1
