"""Generated passes over a weight against float64, for any block, and in shapes for machines that are not this one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.codegen.isa import AVX2, AVX512, GENERIC, NEON, host_isas
from sapp_cli.codegen.machine_code import load, optimize
from sapp_cli.core import masks
from sapp_cli.core.masks import as_blocks, spread
from sapp_cli.grid import BlockGrid
from sapp_cli.passes import block_passes as room
from sapp_cli.passes.block_passes import BlockPasses, block_passes
from sapp_cli.passes.pass_code import ENTRIES, PassShape, generate

UNIT = 2.0**-24
"""Unit roundoff of float32."""


def check(passes, grid, seed):
    """All three passes against float64: products to the bit, sums within Higham's bound for n additions (§3.1)."""
    random = torch.Generator().manual_seed(seed)
    matrix, grad = (torch.randn(grid.matrix, generator=random) for _ in range(2))
    scale = torch.rand(grid.size, generator=random)
    out = torch.empty(grid.matrix)
    sums, squares, again = (torch.full(grid.size, 7.0) for _ in range(3))
    passes.scale(matrix, scale, out)
    assert torch.equal(out, matrix * spread(scale, grid))
    passes.gradients(grad, matrix, scale, out, sums, squares)
    assert torch.equal(out, grad * spread(scale, grid))
    passes.product_squares(grad, matrix, again)
    assert torch.equal(again, squares)
    products = as_blocks(grad.double(), grid) * as_blocks(matrix.double(), grid)
    bound = (grid.block[0] * grid.block[1] + 3) * UNIT
    assert ((sums - products.sum((1, 3))).abs() <= bound * products.abs().sum((1, 3))).all()
    exact = products.square().sum((1, 3))
    assert ((squares - exact).abs() <= bound * exact).all()
    passes.gradients(grad, matrix, scale, grad, again, squares)  # in place
    assert torch.equal(grad, out) and torch.equal(again, sums)


@settings(max_examples=12, deadline=None)
@given(
    block=st.tuples(st.integers(1, 40), st.integers(4, 40)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_any_block(block, size, seed):
    grid = BlockGrid((block[0] * size[0], block[1] * size[1]), block)
    check(block_passes(grid), grid, seed)


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("block", [(16, 16), (3, 27)], ids=str)
def test_every_instruction_set_of_this_machine(isa, block):
    code = load(generate(PassShape(isa, block), openmp=False), isa, ENTRIES)
    check(BlockPasses(block, replace(code, teams={})), BlockGrid((block[0] * 7, block[1] * 3), block), seed=1)


@pytest.mark.parametrize("isa", [NEON, AVX512, AVX2, GENERIC], ids=lambda isa: isa.name)
def test_code_for_other_machines_has_vectors_and_is_verified(isa):
    foreign = isa if isa.triple else replace(isa, triple="x86_64-unknown-linux-gnu")
    machine, module = optimize(generate(PassShape(foreign, (16, 16)), openmp=True), foreign)
    assembly = machine.emit_assembly(module)
    register = {"neon": ".4s", "avx512": "%zmm", "avx2": "%ymm", "generic": "%xmm"}[isa.name]
    assert register in assembly
    assert all(f"{entry}_team:" in assembly for entry in ENTRIES)


@pytest.mark.parametrize(
    ("columns", "pieces"), [(16, [(0, 16)]), (10, [(0, 8), (8, 2)]), (37, [(0, 16), (16, 16), (32, 4), (36, 1)])]
)
def test_rows_of_a_block_are_cut_into_the_widest_vectors(columns, pieces):
    assert PassShape(AVX512, (16, columns)).pieces == pieces


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(room, "LEAST_WORK", 1)
    grid = BlockGrid((7 * 8, 40), (8, 8))
    matrix, grad, scale = torch.randn(grid.matrix), torch.randn(grid.matrix), torch.rand(grid.size)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out, sums = torch.empty(grid.matrix), torch.empty(grid.size)
        block_passes(grid).gradients(grad, matrix, scale, out, sums, torch.empty(grid.size))
        found.append((out, sums))
    torch.set_num_threads(before)
    assert all(torch.equal(out, found[0][0]) and torch.equal(sums, found[0][1]) for out, sums in found)


@pytest.mark.parametrize(
    "wrong",
    [torch.empty(32, 31), torch.empty(32, 32).t(), torch.empty(32, 32, dtype=torch.float64)],
    ids=["shape", "order", "dtype"],
)
def test_what_does_not_fit_is_never_handed_to_machine_code(wrong):
    grid = BlockGrid((32, 32), (8, 16))
    wrong = torch.empty(64, 32)[::2] if wrong.shape == (32, 32) and wrong.dtype == torch.float32 else wrong
    passes, right, blocks = block_passes(grid), torch.empty(32, 32), torch.empty(grid.size)
    with pytest.raises(AssertionError):
        passes.scale(right, blocks, wrong)
    with pytest.raises(AssertionError):
        passes.gradients(wrong, right, blocks, right, blocks, blocks)
    with pytest.raises(AssertionError):
        passes.product_squares(right, right, torch.empty(4, 4))


def test_blocks_without_passes(monkeypatch):
    assert block_passes(BlockGrid((33, 32), (16, 16))) is None  # ragged
    assert block_passes(BlockGrid((32, 32), (16, 2))) is None
    monkeypatch.setattr(room, "kernels_work", lambda: False)
    assert block_passes(BlockGrid((32, 32), (16, 16))) is None


def test_masks_without_llvmlite_are_the_same(monkeypatch):
    """Plain torch takes over: products to the bit, sums within rounding."""
    grid = BlockGrid((512, 384), (16, 32))
    torch.manual_seed(0)
    matrix = torch.randn(grid.matrix, requires_grad=True)
    scale, grad = torch.rand(grid.size, requires_grad=True), torch.randn(grid.matrix)

    def run():
        matrix.grad = scale.grad = None
        product = masks.scale_blocks(matrix, scale, grid, masks.Workspace())
        product.backward(grad)
        return product.detach(), matrix.grad, scale.grad, masks.block_product_squares(grad, matrix, grid)

    with_passes = run()
    monkeypatch.setattr(masks, "block_passes", lambda grid: None)
    plain = run()
    assert torch.equal(with_passes[0], plain[0]) and torch.equal(with_passes[1], plain[1])
    torch.testing.assert_close(with_passes[2], plain[2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(with_passes[3], plain[3], rtol=1e-5, atol=0)
