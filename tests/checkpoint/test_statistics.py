"""Per-block statistics: every dtype, layout and way of storing against a plain float64 computation."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint import statistics
from sapp_cli.checkpoint.block_sparse import to_matrix
from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import BlockStatistics, block_statistics
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from tests.checkpoint.files import ALL_BUT_COMPLEX, random_bits, save, save_block_sparse, save_floats


def reference(array: Bits, dtype: str, layout: MatrixLayout, grid: BlockGrid) -> BlockStatistics:
    """All at once, in float64."""
    kind = DTYPES[dtype]
    values = array.astype(np.float64) if kind.wide else kind.to_float32(array).astype(np.float64)
    blocks, filled = (np.zeros(grid.padded, dtype) for dtype in (np.float64, np.bool_))
    for padded, entries in ((blocks, values), (filled, kind.nonzero(array))):
        padded[: grid.matrix[0], : grid.matrix[1]] = to_matrix(entries, layout)
    shape = (grid.size[0], grid.block[0], grid.size[1], grid.block[1])
    norms = np.sqrt((blocks.reshape(shape) ** 2).sum((1, 3)))
    kept = filled.reshape(shape).any((1, 3))
    return BlockStatistics(norms, kept, int(filled.sum()), bool(np.isfinite(values).all()))


def check(found: BlockStatistics, expected: BlockStatistics) -> None:
    np.testing.assert_array_equal(found.kept, expected.kept)
    assert (found.nonzero, found.finite) == (expected.nonzero, expected.finite)
    with np.errstate(over="ignore"):
        norms = expected.norms.astype(found.norms.dtype)
    np.testing.assert_allclose(found.norms, norms, rtol=2e-6, atol=0)


def linear(rows: int, columns: int, br: int, bc: int) -> tuple[MatrixLayout, BlockGrid]:
    return MatrixLayout("linear", (rows, columns)), BlockGrid((rows, columns), (br, bc))


def test_by_hand(tmp_path: Path) -> None:
    weight = [[3, 0, 0, 0, -1], [0, 4, -0.0, 0, 0], [0, 0, 0, 0, np.inf]]
    checkpoint = open_checkpoint(save_floats(tmp_path / "x.safetensors", w=weight))
    found = block_statistics(checkpoint, "w", *linear(3, 5, 2, 2))
    assert found.norms.tolist() == [[5, 0, 1], [0, 0, np.inf]]
    assert found.kept.tolist() == [[True, False, True], [False, False, True]]
    assert (found.nonzero, found.finite, found.norms.dtype) == (4, False, np.float32)


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of a few rows, so that small weights take every path that large ones take."""
    monkeypatch.setattr(statistics, "SLAB_BYTES", 256)
    monkeypatch.setattr(statistics, "WIDEST_ROW", 64)
    monkeypatch.setattr(statistics, "THREADED_FROM", 512)


@st.composite
def layouts(draw: st.DrawFn) -> MatrixLayout:
    kind: LayoutKind = draw(st.sampled_from(["linear", "transposed", "conv"]))
    if kind == "conv":
        return MatrixLayout("conv", tuple(draw(st.lists(st.integers(0, 6), min_size=3, max_size=5))))
    return MatrixLayout(kind, (draw(st.integers(0, 150)), draw(st.integers(0, 40))))


@settings(deadline=None, max_examples=100)
@given(
    layouts(),
    st.integers(1, 70),
    st.integers(1, 20),
    st.sampled_from(ALL_BUT_COMPLEX),
    st.sampled_from([0, 0.5, 0.99, 1]),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.usefixtures("small_slabs")
def test_any_weight(
    tmp_path_factory: pytest.TempPathFactory,
    layout: MatrixLayout,
    br: int,
    bc: int,
    dtype: str,
    zeros: float,
    seed: int,
) -> None:
    array = random_bits(np.random.default_rng(seed), dtype, layout.shape, zeros)
    if dtype == "F64":
        with np.errstate(all="ignore"):
            array = np.where((np.abs(array) > 1e-100) & (np.abs(array) < 1e100), array, 0)  # with squares in float64
    grid = BlockGrid(layout.matrix, (br, bc))
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    checkpoint = open_checkpoint(save(path, {"w": (dtype, array)}))
    with np.errstate(all="ignore"):
        expected = reference(array, dtype, layout, grid)
    check(block_statistics(checkpoint, "w", layout, grid), expected)
    if dtype == "F8_E8M0":  # it has no zero
        return
    # The same weight stored block-sparse, on its own grid and on another.
    sparse = open_checkpoint(save_block_sparse(path, "w", dtype, array, layout, grid))
    check(block_statistics(sparse, "w", layout, grid), expected)
    other = BlockGrid(layout.matrix, (bc, br))
    with np.errstate(all="ignore"):
        check(block_statistics(sparse, "w", layout, other), reference(array, dtype, layout, other))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("br", "bc"), [(16, 16), (128, 64), (200, 5), (600, 1), (1, 1)])
def test_slabs_as_they_are_in_use(tmp_path: Path, dtype: str, br: int, bc: int) -> None:
    layout, grid = linear(1000, 1026, br, bc)
    rng = np.random.default_rng(0)
    weight = np.where(rng.random(layout.shape) < 0.5, rng.standard_normal(layout.shape), 0).astype(np.float32)
    bits = weight if dtype == "F32" else (weight.view(np.uint32) >> 16).astype(np.uint16)
    checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", {"w": (dtype, bits)}))
    check(block_statistics(checkpoint, "w", layout, grid), reference(bits, dtype, layout, grid))


@pytest.mark.parametrize("size", [1e-42, 1e-25, 1e19, 3e38])
def test_entries_whose_squares_float32_cannot_hold(tmp_path: Path, size: float) -> None:
    layout, grid = linear(4, 4, 2, 2)
    weight = np.zeros((4, 4), np.float32)
    weight[0, 0] = weight[2, 3] = size
    weight[3, 0] = 1
    checkpoint = open_checkpoint(save_floats(tmp_path / "x.safetensors", w=weight))
    found = block_statistics(checkpoint, "w", layout, grid)
    check(found, reference(weight, "F32", layout, grid))
    assert found.finite
    assert found.norms[0, 0] == np.float32(size)


def test_negative_zeros_are_zeros(tmp_path: Path) -> None:
    for dtype, zero, one in (("F32", -0.0, 1.0), ("BF16", 0x8000, 0x3F80), ("F16", -0.0, 1.0), ("F8_E5M2", 0x80, 0x3C)):
        array = np.full((2, 4), zero, DTYPES[dtype].storage)
        array[1, 3] = one
        checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", {"w": (dtype, array)}))
        found = block_statistics(checkpoint, "w", *linear(2, 4, 1, 2))
        assert found.kept.tolist() == [[False, False], [False, True]]
        assert (found.nonzero, found.norms.tolist()) == (1, [[0, 0], [0, 1]])


def test_memory_is_bounded(tmp_path: Path) -> None:
    layout, grid = linear(16384, 1024, 16, 16)
    weight = np.full(layout.shape, 0x3F80, np.uint16)
    checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", {"w": ("BF16", weight)}))
    assert checkpoint.bytes == 32 << 20
    tracemalloc.start()
    block_statistics(checkpoint, "w", layout, grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_ties_complex_numbers_and_names(tmp_path: Path) -> None:
    layout, grid = linear(2, 2, 2, 2)
    path = save(tmp_path / "x.safetensors", {"w": ("C64", np.ones((2, 2), np.complex64))})
    with pytest.raises(CheckpointError) as caught:
        block_statistics(open_checkpoint(path), "w", layout, grid)
    assert str(caught.value) == f"{path}: 'w': complex numbers (C64) are not supported"
    weight = np.ones((2, 2), np.float32)
    checkpoint = open_checkpoint(save_block_sparse(path, "w", "F32", weight, layout, grid, alias="w"))
    assert block_statistics(checkpoint, "alias", layout, grid).norms.tolist() == [[2]]
    with pytest.raises(CheckpointError, match="'v': no such tensor in this checkpoint"):
        block_statistics(checkpoint, "v", layout, grid)
