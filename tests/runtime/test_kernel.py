"""Generated kernels against float64 products, on every instruction set this machine has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint.block_sparse import index_problem
from sapp_cli.codegen import threads
from sapp_cli.codegen.isa import host_isas
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.parts import cut_into_parts
from tests.runtime.weights import assert_near_exact, kernel_for, sparse_weight

ROWS = [0, 1, 2, 7, 9, 12, 13, 16, 33, 49, 101]
BLOCKS = [(8, 8), (16, 16), (32, 16), (4, 4), (12, 7)]


@pytest.fixture(autouse=True)
def _small_work_is_shared_as_well(monkeypatch):
    monkeypatch.setattr(threads, "LEAST_WORK", 1)


def check(matrix, block, share, dtype, rows, seed=0, isa=None):
    weight = sparse_weight(matrix, block, share, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(matrix[0], generator=generator).to(dtype) if seed % 2 else None
    kernel = kernel_for(weight, block, bias, isa)
    for count in rows:
        x = torch.randn(count, matrix[1], generator=generator).to(dtype)
        alone, together = kernel(x, threads=1), kernel(x, threads=2)
        assert alone.shape == (count, matrix[0])
        assert torch.equal(alone, together)  # bit for bit, whoever computed what
        assert_near_exact(alone, x, weight, bias)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from(BLOCKS),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 120),
    st.integers(0, 1000),
)
def test_any_shape_ragged_or_not(matrix, block, share, dtype, rows, seed):
    check(matrix, block, share, dtype, [rows], seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("block", [(16, 8), (8, 8), (24, 5)], ids=str)
@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_every_instruction_set_of_this_machine(isa, block, dtype):
    check((70, 100), block, 0.3, dtype, ROWS, seed=1, isa=isa)


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        ((32, 8), torch.float32),
        ((128, 128), torch.float32),  # cut into two of 64 rows
        ((24, 8), torch.bfloat16),
        ((12, 5), torch.bfloat16),  # padded to 16 rows and 6 columns
        ((1, 3), torch.float32),
    ],
    ids=str,
)
def test_odd_tall_and_rectangular_blocks(block, dtype):
    check((130, 77), block, 0.4, dtype, [1, 13, 70], seed=3)


def test_long_block_rows(monkeypatch):
    monkeypatch.setattr("sapp_cli.runtime.kernel.LONG_ROW", 64)
    for dtype in (torch.float32, torch.bfloat16):
        check((70, 100), (16, 8), 0.3, dtype, [1, 5, 12, 101], seed=1)


@pytest.mark.parametrize("block", [(8, 8), (5, 3), (16, 16)], ids=str)
def test_a_row_of_x_gives_the_same_whatever_rows_stand_beside_it(block):
    """Few rows and many take different tiles; the sums are in one order, so not a bit may differ."""
    kernel = kernel_for(sparse_weight((60, 50), block, 0.5), block)
    x = torch.randn(60, 50)
    many = kernel(x)
    assert torch.equal(many[:7], kernel(x[:7]))
    assert torch.equal(many[50:], kernel(x[50:]))


def test_rows_of_empty_block_rows_are_written():
    weight = torch.zeros(32, 32)
    weight[0, 0] = 2.0
    bias = torch.arange(32.0)
    kernel = kernel_for(weight, (8, 8), bias)
    x = torch.ones(3, 32)
    assert kernel(x).tolist() == [[2.0, *range(1, 32)]] * 3
    assert kernel(x[:1]).tolist() == [[2.0, *range(1, 32)]]


def test_a_weight_without_any_block_gives_the_bias():
    kernel = kernel_for(torch.zeros(24, 40), (8, 8), torch.full((24,), 0.5))
    assert torch.equal(kernel(torch.randn(5, 40)), torch.full((5, 24), 0.5))


def test_a_product_by_hand():
    weight = torch.zeros(16, 16)
    weight[8:10, 0:2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = torch.zeros(2, 16)
    x[0, :2] = torch.tensor([10.0, 100.0])
    y = kernel_for(weight, (8, 8))(x)
    assert y[0].nonzero().flatten().tolist() == [8, 9]
    assert y[0, 8:10].tolist() == [210.0, 430.0]
    assert not y[1].any()


def test_what_only_meets_pruned_blocks_leaves_no_trace():
    weight = torch.zeros(16, 16)
    weight[:8, :8] = 1.0
    x = torch.ones(2, 16)
    x[:, 8:] = float("nan")
    assert torch.equal(kernel_for(weight, (8, 8))(x)[:, :8], torch.full((2, 8), 8.0))


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan_and_infinity():
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    weight[0, 0] = weight[1, 0] = weight[0, 1] = 1.0
    x = torch.zeros(5, 8, dtype=torch.bfloat16)
    x[:, 0] = torch.tensor([1.0, 1.0, float("inf"), float("nan"), 3.0])
    x[:, 1] = torch.tensor([2.0**-8, 2.0**-7, 1.0, 1.0, 3 * 2.0**-7])
    for isa in host_isas():
        y = kernel_for(weight, (8, 8), isa=isa)(x)[:, 0]  # x₀ + x₁
        assert y[:3].tolist() == [1.0, 1.0 + 2.0**-7, float("inf")]  # bfloat16 at 1: steps of 2⁻⁷; 1 + 2⁻⁸ is a tie
        assert y[3].isnan()
        assert y[4] == 3 + 2.0**-5  # at 2: steps of 2⁻⁶; 3 + 3·2⁻⁷ is a tie again


@pytest.mark.parametrize("block", [(16, 16), (8, 8), (5, 3)], ids=str)
def test_nothing_is_written_or_read_beyond_the_ends(block):
    """x, y and the weight lie against guarded memory: a read or write beyond would change or poison a number."""
    weight = sparse_weight((37, 29), block, 0.7)
    kernel = kernel_for(weight, block)
    for rows in (1, 5, 10, 60):
        around = torch.full((rows * 29 + 128,), float("nan"))
        x = around[64 : 64 + rows * 29].view(rows, 29)
        x.copy_(torch.randn(rows, 29))
        assert_near_exact(kernel(x), x, weight)


def test_parts_cover_everything_once():
    crow = np.array([0, 5, 5, 5, 6, 20, 20], np.int32)
    for count in (1, 2, 3, 8):
        for rows in (1, 30, 500):
            parts = cut_into_parts(rows, crow, count)
            assert 1 <= len(parts) <= count
            cells = [(r, b) for r0, r1, b0, b1 in parts for r in range(r0, r1) for b in range(b0, b1)]
            assert sorted(cells) == [(r, b) for r in range(rows) for b in range(6)]


def test_block_rows_are_shared_out_by_their_blocks():
    crow = np.array([0, 10, 11, 12, 13, 20], np.int32)
    assert cut_into_parts(1, crow, 2) == [(0, 1, 0, 1), (0, 1, 1, 5)]


def test_a_pool_of_our_own_gives_the_same(monkeypatch):
    weight = sparse_weight((96, 64), (16, 16), 0.5)
    kernel = kernel_for(weight, (16, 16))
    x = torch.randn(100, 64)
    expected = kernel(x, threads=1)
    monkeypatch.setattr("sapp_cli.codegen.machine_code.openmp", lambda: None)
    assert torch.equal(kernel(x, threads=2), expected)
    assert torch.equal(kernel(x[:3], threads=2), expected[:3])


@pytest.mark.parametrize(
    ("crow", "col", "problem"),
    [
        ([0, 1, 2], [0, 2], "bsr_col_indices[1] is 2; there are 2 block columns"),
        ([0, 1, 2], [0, -1], "bsr_col_indices[1] is -1; there are 2 block columns"),
        ([0, 3, 2], [0, 1], "bsr_crow_indices falls at block row 1"),
        ([0, 2, 2], [1, 0], "bsr_col_indices[1] does not ascend within its block row"),
    ],
)
def test_the_check_that_stands_before_every_kernel(crow, col, problem):
    assert index_problem(np.array(crow, np.int32), np.array(col, np.int32), BlockGrid((16, 16), (8, 8))) == problem
