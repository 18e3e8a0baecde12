"""The block-sparse form of a matrix: worked by hand, against SciPy and torch, and there and back for everything else."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint.block_sparse import (
    block_rows,
    decode,
    encode,
    from_matrix,
    index_problem,
    kept_blocks,
    padding_is_zero,
    to_matrix,
)
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from tests.checkpoint.files import ALL_BUT_COMPLEX, random_bits, same_bits

F32 = DTYPES["F32"]


def test_by_hand_with_ragged_edges() -> None:
    matrix = np.array(
        [
            [1, 2, 0, 0, 5],
            [3, 4, 0, 0, 6],
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0],
            [0, 0, 7, 0, 0],
        ],
        np.float32,
    )
    grid = BlockGrid((5, 5), (2, 2))
    sparse = encode(matrix, grid, F32)
    assert sparse.values.tolist() == [[[1, 2], [3, 4]], [[5, 0], [6, 0]], [[7, 0], [0, 0]]]
    assert sparse.crow.tolist() == [0, 2, 2, 3]
    assert sparse.col.tolist() == [0, 2, 1]
    assert (sparse.crow.dtype, sparse.col.dtype) == (np.int32, np.int32)
    assert block_rows(sparse.crow).tolist() == [0, 0, 2]
    assert same_bits(decode(sparse, grid), matrix)


def test_a_block_of_negative_zeros_is_not_kept_and_comes_back_positive() -> None:
    matrix = np.array([[-0.0, -0.0, -0.0, 1.0]], np.float32)
    grid = BlockGrid((1, 4), (1, 2))
    sparse = encode(matrix, grid, F32)
    assert sparse.col.tolist() == [1]
    assert np.signbit(decode(sparse, grid)).tolist() == [[False, False, True, False]]


def test_nan_is_kept() -> None:
    grid = BlockGrid((1, 2), (1, 1))
    assert kept_blocks(np.array([[np.nan, 0]], np.float32), grid, F32).tolist() == [[True, False]]
    assert kept_blocks(np.array([[0x7FC0, 0x8000]], np.uint16), grid, DTYPES["BF16"]).tolist() == [[True, False]]


def test_a_convolution_has_its_channels_fastest() -> None:
    layout = MatrixLayout("conv", (1, 2, 1, 3))
    weight = np.array([[[[1, 2, 3]], [[10, 20, 30]]]])
    assert to_matrix(weight, layout).tolist() == [[1, 10, 2, 20, 3, 30]]
    assert same_bits(from_matrix(to_matrix(weight, layout), layout), weight)


SIDES = st.integers(1, 9)


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray, str, MatrixLayout, BlockGrid]:
    """(entries, dtype, layout, grid) of any dtype and layout, with zero blocks, ragged edges and rectangular blocks."""
    kind: LayoutKind = draw(st.sampled_from(["linear", "transposed", "conv"]))
    axes = draw(st.integers(2, 5)) if kind == "conv" else 2
    shape = tuple(draw(st.lists(st.integers(0, 6 if axes > 2 else 30), min_size=axes, max_size=axes)))
    layout = MatrixLayout(kind, shape)
    grid = BlockGrid(layout.matrix, (draw(SIDES), draw(SIDES)))
    dtype = draw(st.sampled_from([dtype for dtype in ALL_BUT_COMPLEX if dtype != "F8_E8M0"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = rng.random(grid.size) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    matrix = random_bits(rng, dtype, layout.matrix)
    spread = np.repeat(np.repeat(keep, grid.block[0], 0), grid.block[1], 1)[: matrix.shape[0], : matrix.shape[1]]
    matrix = np.where(spread, matrix, DTYPES[dtype].storage.type(0))
    return np.ascontiguousarray(from_matrix(matrix, layout)), dtype, layout, grid


@settings(deadline=None, max_examples=150)
@given(weights())
def test_there_and_back(weight: tuple[np.ndarray, str, MatrixLayout, BlockGrid]) -> None:
    array, dtype, layout, grid = weight
    kind = DTYPES[dtype]
    matrix = to_matrix(array, layout)
    sparse = encode(matrix, grid, kind)
    assert index_problem(sparse.crow, sparse.col, grid) is None
    assert padding_is_zero(sparse.values, block_rows(sparse.crow), sparse.col, grid)
    # An independent reference: each block is looked at by itself. Where nothing is nonzero, −0 becomes +0.
    expected = matrix.copy()
    kept = []
    for row in range(grid.size[0]):
        for column in range(grid.size[1]):
            place = (slice(*grid.extent(0, row)), slice(*grid.extent(1, column)))
            if kind.nonzero(matrix[place]).any():
                kept.append((row, column))
            else:
                expected[place] = 0
    assert list(zip(block_rows(sparse.crow).tolist(), sparse.col.tolist(), strict=True)) == kept
    assert same_bits(from_matrix(decode(sparse, grid), layout), from_matrix(expected, layout))


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(1, 40), SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_scipy_and_torch_take_the_three_arrays_unchanged(rows: int, columns: int, br: int, bc: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = BlockGrid((rows, columns), (br, bc))
    matrix = np.where(rng.random(grid.matrix) < 0.1, rng.standard_normal(grid.matrix), 0).astype(np.float32)
    sparse = encode(matrix, grid, F32)
    padded = np.zeros(grid.padded, np.float32)
    padded[:rows, :columns] = matrix
    theirs = torch.sparse_bsr_tensor(
        torch.from_numpy(sparse.crow), torch.from_numpy(sparse.col), torch.from_numpy(sparse.values), size=grid.padded,
        check_invariants=True,
    )  # fmt: skip
    assert theirs.to_dense().numpy().tolist() == padded.tolist()
    if rows and len(sparse.col):
        scipys = scipy.sparse.bsr_array((sparse.values, sparse.col, sparse.crow), shape=grid.padded)
        assert scipys.has_canonical_format
        assert scipys.toarray().tolist() == padded.tolist()


GRID = BlockGrid((4, 6), (2, 2))  # 2 × 3 blocks


@pytest.mark.parametrize(
    ("crow", "col", "problem"),
    [
        ([0, 2], [0, 1], "bsr_crow_indices has 2 entries; 2 block rows need 3"),
        ([1, 1, 2], [0, 1], "bsr_crow_indices begins with 1, not 0"),
        ([0, 1, 3], [0, 1], "bsr_crow_indices ends with 3; there are 2 blocks"),
        ([0, 3, 2], [0, 1], "bsr_crow_indices falls at block row 1"),
        ([0, -(2**31), 2], [0, 1], "bsr_crow_indices falls at block row 0"),
        ([0, 2**31 - 1, 2], [0, 1], "bsr_crow_indices falls at block row 1"),
        ([0, 1, 2], [0, 3], "bsr_col_indices[1] is 3; there are 3 block columns"),
        ([0, 1, 2], [-1, 0], "bsr_col_indices[0] is -1; there are 3 block columns"),
        ([0, 2, 2], [1, 0], "bsr_col_indices[1] does not ascend within its block row"),
        ([0, 0, 2], [1, 1], "bsr_col_indices[1] does not ascend within its block row"),
        ([0, 1, 2], [1, 0], None),
        ([0, 0, 0], [], None),
        ([0, 3, 6], [0, 1, 2, 0, 1, 2], None),
    ],
)
def test_indices_that_would_crash_a_kernel_are_found(crow: list[int], col: list[int], problem: str | None) -> None:
    assert index_problem(np.array(crow, np.int32), np.array(col, np.int32), GRID) == problem


@pytest.mark.parametrize(("place", "zero"), [((0, 0, 1), False), ((0, 1, 0), False), ((0, 0, 0), True)])
def test_padding(place: tuple[int, int, int], zero: bool) -> None:
    grid = BlockGrid((3, 3), (2, 2))
    values = np.zeros((1, 2, 2), np.float32)
    values[place] = -0.0 if not zero else 1.0  # in the padding even −0 is one bit too many
    last = np.array([1], np.int32)
    assert padding_is_zero(values, last, last, grid) is zero
    assert padding_is_zero(values, last - 1, last - 1, grid)
