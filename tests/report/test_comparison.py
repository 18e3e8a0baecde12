"""Two checkpoints against each other, and the bands in which they are read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint.block_sparse import to_matrix
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.report import bands as bands_module
from sapp_cli.report.bands import MatrixRows, bands, same_bits
from sapp_cli.report.comparison import LayerComparison, compare
from sapp_cli.report.inspect import layer_facts
from tests.checkpoint.files import random_bits, save, save_block_sparse, save_floats


def compared(here, there, block=(2, 2)):
    one, other = open_checkpoint(here), open_checkpoint(there)
    return compare(one, layer_facts(one, block), other, layer_facts(other, block))


def test_blocks_and_change_by_hand(tmp_path):
    here, there = np.zeros((4, 4)), np.zeros((4, 4))
    here[0, 0], here[0, 2] = 3, 1  # blocks (0, 0) and (0, 1)
    there[0, 0], there[2, 2] = 3, 4  # blocks (0, 0) and (1, 1)
    found = compared(
        save_floats(tmp_path / "here.safetensors", **{"a.weight": here}),
        save_floats(tmp_path / "there.safetensors", **{"a.weight": there}),
    )
    # difference: 1 and 4, norm of the other: 5
    assert found.layers == (LayerComparison("a.weight", (2, 2), 1, 1, 1, pytest.approx(17**0.5 / 5), None),)


def test_layers_of_one_only_are_told_in_both_directions(tmp_path):
    found = compared(
        save_floats(tmp_path / "here.safetensors", **{"a.weight": np.ones((2, 2)), "b.weight": np.ones((2, 4))}),
        save_floats(tmp_path / "there.safetensors", **{"c.weight": np.ones((2, 2)), "b.weight": np.ones((4, 2))}),
    )
    assert (found.only_here, found.only_there) == (("a.weight",), ("c.weight",))
    assert found.layers == (LayerComparison("b.weight", None, None, None, None, None, "2×4 here, 4×2 there"),)


def test_a_dense_and_a_block_sparse_file_of_other_blocks_compare(tmp_path):
    weight = np.kron([[1, 0], [0, 1]], np.ones((3, 4))).astype(np.float32)  # (6, 8)
    layout = MatrixLayout("linear", (6, 8))
    sparse = save_block_sparse(tmp_path / "s.safetensors", "a.weight", "F32", weight, layout, BlockGrid((6, 8), (3, 4)))
    dense = save_floats(tmp_path / "d.safetensors", **{"a.weight": 2 * weight})
    assert compared(dense, sparse).layers[0] == LayerComparison("a.weight", (2, 2), 8, 0, 0, 1.0, None)
    assert compared(sparse, dense, None).layers[0] == LayerComparison("a.weight", (3, 4), 2, 0, 0, 0.5, None)


@pytest.mark.parametrize(("here", "there", "change"), [(0, 0, 0.0), (1, 0, None), (0, 1, 1.0), (np.nan, 1, None)])
def test_changes_at_the_edges(tmp_path, here, there, change):
    found = compared(
        save_floats(tmp_path / "here.safetensors", **{"a.weight": np.full((2, 2), here)}),
        save_floats(tmp_path / "there.safetensors", **{"a.weight": np.full((2, 2), there)}),
    )
    assert found.layers[0].change == change


@settings(deadline=None)
@given(
    kind=st.sampled_from(["linear", "transposed", "conv"]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 3)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dtype=st.sampled_from(["F32", "BF16", "F8_E4M3"]),
    size=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_bands_are_the_rows_of_the_matrix_in_either_storage(tmp_path_factory, kind, shape, block, dtype, size, seed):
    folder = tmp_path_factory.mktemp("bands")
    layout = MatrixLayout(kind, shape if kind == "conv" else shape[:2])
    array = random_bits(np.random.default_rng(seed), dtype, layout.shape, zeros=0.7)
    array[~DTYPES[dtype].nonzero(array)] = 0  # a block of −0 alone comes back as +0
    grid = BlockGrid(layout.matrix, block)
    dense = save(folder / "d.safetensors", {"a": (dtype, array)})
    sparse = save_block_sparse(folder / "s.safetensors", "a", dtype, array, layout, grid)
    matrix = to_matrix(array, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands_module, "BAND_BYTES", size)
        edges = list(bands(layout, array.itemsize))
    assert [start for start, _ in edges] + [layout.matrix[0]] == [0] + [stop for _, stop in edges]
    for path in (dense, sparse):
        rows = MatrixRows(open_checkpoint(path), "a", layout)
        assert all(same_bits(rows.read(*edge), matrix[slice(*edge)]) for edge in edges)


def test_bits_are_compared_not_values():
    nan = np.array([np.nan], np.float32)
    assert same_bits(nan, nan.copy())
    assert not same_bits(np.array([0.0]), np.array([-0.0]))
    assert not same_bits(np.zeros(2), np.zeros(3))
    assert same_bits(np.array([1j], np.complex64), np.array([1j], np.complex64))
