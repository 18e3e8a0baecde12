"""Products on kept blocks and their gradients against float64, and a sampled product by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint.block_sparse import indices
from sapp_cli.codegen import machine_code, threads
from sapp_cli.codegen.isa import AVX2, AVX512, NEON, host_isas
from sapp_cli.codegen.machine_code import optimize
from sapp_cli.core.masks import gather_blocks, scatter_blocks
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime import kept_product
from sapp_cli.runtime.kept_product import KeptProduct
from sapp_cli.runtime.sampled import SampledProduct
from sapp_cli.runtime.sampled_code import PANEL_ROWS, generate, sampled_shape

UNIT = 2.0**-24


@pytest.fixture(autouse=True)
def _small_work_is_shared_as_well(monkeypatch):
    monkeypatch.setattr(threads, "LEAST_WORK", 1)


def mask(size, share, seed):
    keep = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
    keep.view(-1)[seed % keep.numel()] = True
    return keep


def assert_is_the_gradient(grid, keep, rows, seed=0, isa=None):
    """|dW − exact| ≤ γ·|dY|ᵀ|X| with γ = n·u of n float32 additions (Higham, §3.1), and the same bits from two threads."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(rows, width, generator=generator) for width in (grid.matrix[1], grid.matrix[0]))
    product = SampledProduct(*indices(keep.numpy()), grid, isa)
    alone, together = product(x, dy, threads=1), product(x, dy, threads=2)
    assert torch.equal(alone, together)
    exact = gather_blocks(dy.double().t() @ x.double(), keep, grid)
    size = gather_blocks(dy.double().abs().t() @ x.double().abs(), keep, grid)
    excess = (alone.double() - exact).abs() - (rows + 2) * UNIT * size
    assert excess.numel() == 0 or excess.max() <= 1e-37


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from([(8, 8), (12, 5)]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([0, 1, 3, PANEL_ROWS, PANEL_ROWS + 1, 2 * PANEL_ROWS + 5]),
    st.integers(0, 1000),
)
def test_any_shape_ragged_or_not(matrix, block, share, rows, seed):
    grid = BlockGrid(matrix, block)
    assert_is_the_gradient(grid, mask(grid.size, share, seed), rows, seed)


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_every_instruction_set_of_this_machine(isa):
    grid = BlockGrid((70, 100), (16, 8))
    assert_is_the_gradient(grid, mask(grid.size, 0.3, 1), 50, isa=isa)


@pytest.mark.parametrize("block", [(64, 64), (1, 3), (40, 33)], ids=str)
def test_odd_tall_and_wide_blocks(block):
    grid = BlockGrid((150, 90), block)
    assert_is_the_gradient(grid, mask(grid.size, 0.4, 2), 33)


def test_without_openmp_a_pool_computes_the_parts(monkeypatch):
    monkeypatch.setattr(machine_code, "openmp", lambda: None)
    grid = BlockGrid((64, 64), (8, 8))
    assert_is_the_gradient(grid, mask(grid.size, 0.3, 3), 5 * PANEL_ROWS)


def test_a_gradient_by_hand():
    grid = BlockGrid((4, 6), (2, 3))
    keep = torch.tensor([[False, True], [True, False]])
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6], [0, 0, 1, 1, 0, 0]])
    dy = torch.tensor([[1.0, 10, 100, 1000], [2, 0, 0, 3]])
    first, second = SampledProduct(*indices(keep.numpy()), grid)(x, dy)
    assert first.tolist() == [
        [6.0, 40],
        [5, 50],
        [6, 60],
    ]  # (column of the block, row of the block): x₃…x₅ with dy₀, dy₁
    assert second.tolist() == [[100.0, 1000], [200, 2000], [300, 3003]]


def test_what_only_meets_pruned_blocks_leaves_no_trace():
    grid = BlockGrid((16, 16), (8, 8))
    keep = torch.tensor([[True, False], [False, False]])
    x, dy = torch.ones(3, 16), torch.ones(3, 16)
    x[:, 8:] = dy[:, 8:] = float("nan")
    assert torch.equal(SampledProduct(*indices(keep.numpy()), grid)(x, dy), torch.full((1, 8, 8), 3.0))


@pytest.mark.parametrize(
    ("isa", "block", "lanes", "tile"),
    [
        (AVX512, (8, 8), 8, (8, 1)),
        (AVX512, (16, 16), 16, (16, 1)),
        (AVX512, (32, 32), 16, (11, 2)),  # 11·2 sums, two vectors of dy, one of x: 25 of 32 registers
        (AVX512, (64, 64), 16, (6, 4)),
        (AVX512, (12, 5), 8, (5, 2)),  # four of sixteen lanes idle
        (AVX2, (16, 16), 8, (6, 2)),
        (NEON, (16, 16), 4, (6, 4)),
    ],
)
def test_tiles_fit_the_registers(isa, block, lanes, tile):
    shape = sampled_shape(isa, block)
    assert (shape.lanes, shape.tile) == (lanes, tile)
    assert tile[1] * (tile[0] + 1) + 1 <= isa.registers


@pytest.mark.parametrize("block", [(8, 8), (16, 16), (32, 32)], ids=str)
def test_sums_stay_in_registers(block):
    """In the innermost loop of a tile there is no store: a sum that is spilled costs more than the multiplication."""
    shape = sampled_shape(replace(AVX512, triple="x86_64-unknown-linux-gnu"), block)
    machine, module = optimize(generate(shape, openmp=False), shape.isa)
    tile = machine.emit_assembly(module).split(f"tile_{shape.tile[0]}_{shape.tile[1]}:")[1].split(".cfi_endproc")[0]
    busiest = max(tile.split(".LBB"), key=lambda part: part.count("vfmadd231ps"))
    assert busiest.count("vfmadd231ps") >= shape.tile[0] * shape.tile[1]
    assert not [line for line in busiest.splitlines() if "(%rsp)" in line]


@pytest.mark.parametrize("way", ["kernels", "torch"])
@pytest.mark.parametrize(
    ("matrix", "block"),
    [((24, 40), (8, 8)), ((40, 33), (12, 12)), ((130, 20), (128, 8))],  # the last two: ragged and padded, cut
    ids=str,
)
def test_values_and_all_gradients_are_those_of_the_dense_product(matrix, block, way, monkeypatch):
    if way == "torch":
        monkeypatch.setattr(kept_product, "kernels_work", lambda: False)
    generator = torch.Generator().manual_seed(0)
    grid = BlockGrid(matrix, block)
    keep = mask(grid.size, 0.4, 5)
    kept = int(keep.sum())
    theta = torch.randn(matrix, generator=generator)
    blocks = gather_blocks(theta, keep, grid)
    product = KeptProduct(keep, grid)
    for scaled, biased in ((True, True), (False, False), (True, False)):  # the kernels are bound to memory: used again
        values = (blocks + 1.0 * (blocks != 0)).requires_grad_()
        x = torch.randn(3, 5, matrix[1], generator=generator).requires_grad_()
        scale = torch.rand(kept, generator=generator).requires_grad_() if scaled else None
        bias = torch.randn(matrix[0], generator=generator).requires_grad_() if biased else None
        dy = torch.randn(3, 5, matrix[0], generator=generator)
        given = [tensor for tensor in (x, values, scale, bias) if tensor is not None]
        y = product(x, values, scale, bias)
        found = torch.autograd.grad(y, given, dy)
        whole = values if scale is None else values * scale.view(-1, 1, 1)
        expected = torch.nn.functional.linear(x, scatter_blocks(whole, keep, grid), bias)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(found, torch.autograd.grad(expected, given, dy), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_needed():
    grid = BlockGrid((16, 16), (8, 8))
    product = KeptProduct(torch.eye(2, dtype=torch.bool), grid)
    values, x = torch.randn(2, 8, 8), torch.randn(4, 16, requires_grad=True)
    product(x, values, None, None).sum().backward()
    assert x.grad is not None and values.grad is None


def test_weights_that_moved_between_forward_and_backward_are_noticed():
    grid = BlockGrid((16, 16), (8, 8))
    values = torch.randn(2, 8, 8, requires_grad=True)
    y = KeptProduct(torch.eye(2, dtype=torch.bool), grid)(torch.randn(4, 16), values, None, None)
    with torch.no_grad():
        values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_other_floats_go_by_plain_torch():
    grid = BlockGrid((16, 16), (8, 8))
    keep = torch.eye(2, dtype=torch.bool)
    values, x = torch.randn(2, 8, 8).double().requires_grad_(), torch.randn(4, 16).double()
    product = KeptProduct(keep, grid)
    y = product(x, values, None, None)
    torch.testing.assert_close(y, x @ scatter_blocks(values, keep, grid).t())
    assert torch.autograd.gradcheck(lambda v: product(x, v, None, None), (values,))


def test_gradients_of_gradients_are_refused():
    product = KeptProduct(torch.eye(2, dtype=torch.bool), BlockGrid((16, 16), (8, 8)))
    values = torch.randn(2, 8, 8, requires_grad=True)
    y = product(torch.randn(4, 16, requires_grad=True), values, None, None)
    (gradient,) = torch.autograd.grad(y.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_gathering_turns_each_block_and_scattering_turns_it_back():
    grid = BlockGrid((3, 4), (2, 2))
    matrix = torch.arange(12.0).view(3, 4)
    keep = torch.tensor([[True, False], [False, True]])
    blocks = gather_blocks(matrix, keep, grid)
    assert blocks.tolist() == [[[0, 4], [1, 5]], [[10, 0], [11, 0]]]
    expected = np.array([[0, 1, 0, 0], [4, 5, 0, 0], [0, 0, 10, 11]], np.float32)
    assert scatter_blocks(blocks, keep, grid).tolist() == expected.tolist()
