"""The CUDA kernel against float64 products, run by Triton's interpreter: everything about it but its speed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.triton_product import TritonProduct, TritonWeight
from sapp_cli.runtime.triton_tiles import Tile
from tests.runtime.weights import sparse_weight, triple

pytestmark = pytest.mark.usefixtures("interpreted")

SMALL = Tile(rows=16, outputs=16, columns=32, warps=4, stages=3)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAST_PLACE = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""A whole one of the mantissa: where a card rounds to the nearest, the interpreter cuts bfloat16 off."""


def product(weight, block, bias=None, tile=SMALL):
    values, crow, col = triple(weight, block)
    grid = BlockGrid(tuple(weight.shape), block)
    indices = torch.from_numpy(crow), torch.from_numpy(col)
    return TritonProduct(TritonWeight.of(values, *indices, bias, grid), tile)


def assert_near_exact(y, x, weight, bias=None):
    """Within the bound of any order of float32 additions (see weights.py), and the rounding of the result."""
    added = 0.0 if bias is None else bias.double()
    exact = x.double() @ weight.double().t() + added
    size = x.double().abs() @ weight.double().abs().t() + abs(added)
    sums = (weight.shape[1] + 2) * 2.0**-24 * size
    rounding = LAST_PLACE[y.dtype] * (exact.abs() + sums) + torch.finfo(y.dtype).tiny * LAST_PLACE[y.dtype]
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= 1.01 * (sums + rounding)).all()), (y.double() - exact).abs().max()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 90)),
    st.sampled_from([(16, 16), (8, 8), (4, 4), (16, 32), (32, 16), (5, 7), (1, 3), (24, 40), (64, 64)]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(DTYPES),
    st.integers(0, 40),
    st.sampled_from([SMALL, Tile(32, 16, 16, 4, 3), Tile(16, 64, 64, 4, 3)]),
    st.integers(0, 1000),
)
def test_any_shape_block_and_tile(matrix, block, share, dtype, rows, tile, seed):
    weight = sparse_weight(matrix, block, share, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(matrix[0], generator=generator).to(dtype) if seed % 2 else None
    x = torch.randn(rows, matrix[1], generator=generator).to(dtype)
    y = product(weight, block, bias, tile)(x)
    assert y.shape == (rows, matrix[0])
    assert_near_exact(y, x, weight, bias)


def test_rows_of_empty_block_rows_are_written():
    weight = torch.zeros(32, 32)
    weight[0, 0] = 2.0
    bias = torch.arange(32.0)
    assert product(weight, (8, 8), bias)(torch.ones(3, 32)).tolist() == [[2.0, *range(1, 32)]] * 3
    assert product(weight, (8, 8))(torch.ones(1, 32)).tolist() == [[2.0] + [0.0] * 31]
    assert product(torch.zeros(32, 32), (8, 8), bias)(torch.ones(1, 32)).tolist() == [list(range(32))]


@pytest.mark.parametrize("block", [(8, 8), (16, 64), (5, 7)], ids=str)
def test_an_infinity_that_meets_no_block_leaves_no_trace(block):
    weight = sparse_weight((40, 70), block, 1.0)
    weight[:, : block[1]] = 0.0
    weight[:, 2 * block[1] : 3 * block[1]] = 0.0
    x = torch.randn(3, 70)
    expected = product(weight, block)(x)
    x[0, : block[1]] = float("inf")
    x[1, 2 * block[1] : 3 * block[1]] = float("nan")
    assert torch.equal(product(weight, block)(x), expected)


# Of a block less than 16 rows high the rest of the tile is zeros; what comes out there is not stored.
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_an_infinity_stays_in_its_row_and_its_outputs():
    weight = torch.zeros(16, 16)
    weight[:8, :8] = 1.0
    x = torch.ones(2, 16)
    x[1, 3] = float("inf")
    y = product(weight, (8, 8))(x)
    assert y[0].tolist() == [8.0] * 8 + [0.0] * 8
    assert y[1].tolist() == [float("inf")] * 8 + [0.0] * 8


def test_nothing_is_read_beyond_the_ends():
    """Before and after x lies NaN, and so it does beyond the edge in the blocks' padding."""
    weight = sparse_weight((37, 29), (16, 16), 0.7)
    multiply = product(weight, (16, 16))
    stored = multiply.weight.values.transpose(1, 2)  # (K, br, bc)
    ragged = multiply.weight.col == 1
    stored[ragged, :, 29 - 16 :] = float("nan")
    for rows in (1, 18):
        around = torch.full((rows * 29 + 128,), float("nan"))
        x = around[64 : 64 + rows * 29].view(rows, 29)
        x.copy_(torch.randn(rows, 29))
        assert_near_exact(multiply(x), x, weight)


def test_x_need_not_be_contiguous():
    weight = sparse_weight((32, 48), (16, 16), 0.5)
    multiply = product(weight, (16, 16))
    x = torch.randn(10, 48)
    expected = multiply(x)
    wide = torch.randn(20, 60)
    wide[::2, 5:53] = x
    assert torch.equal(multiply(wide[::2, 5:53]), expected)  # rows 120 apart
    assert torch.equal(multiply(x.t().contiguous().t()), expected)
    same = x[:1].expand(10, 48)
    assert torch.equal(multiply(same), multiply(same.contiguous()))  # rows 0 apart


def test_block_rows_with_most_blocks_come_first():
    weight = torch.zeros(32, 64)
    weight[8:16, :40] = weight[24:32] = weight[16:24, :40] = 1.0
    made = product(weight, (8, 8)).weight
    assert made.crow.tolist() == [0, 0, 5, 10, 18]
    assert made.order.tolist() == [3, 1, 2, 0]
    assert made.order.dtype == torch.int32


def test_the_weight_is_shared_where_its_columns_come_first():
    values, crow, col = triple(sparse_weight((32, 32), (16, 8), 0.9), (16, 8))
    columns_first = values.transpose(1, 2).contiguous().transpose(1, 2)
    indices = torch.from_numpy(crow), torch.from_numpy(col)
    made = TritonWeight.of(columns_first, *indices, None, BlockGrid((32, 32), (16, 8)))
    assert made.values.data_ptr() == columns_first.data_ptr()
    assert TritonWeight.of(values, *indices, None, made.grid).values.data_ptr() != values.data_ptr()


def test_a_sum_beyond_half_precision_is_taken_in_single():
    """2048 + 1 + … + 1: every sum in float16 would stay at 2048."""
    weight = torch.ones(16, 48, dtype=torch.float16)
    x = torch.ones(1, 48, dtype=torch.float16)
    x[0, 0] = 2048
    assert product(weight, (16, 16))(x)[0].tolist() == [2048.0 + 48] * 16  # 2095, to the next even number
