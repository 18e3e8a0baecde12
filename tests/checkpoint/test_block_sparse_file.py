"""Block-sparse weights in files: every rule of docs/format.md, broken, is one line with file and tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapp_cli.checkpoint.block_sparse_file import block_sparse_metadata
from sapp_cli.checkpoint.dtypes import Bits
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.errors import CheckpointError, ResourceError
from sapp_cli.grid import BlockGrid, MatrixLayout
from tests.checkpoint.files import save, save_block_sparse, save_floats

Tensors = dict[str, tuple[str, Bits]]
ABOUT = {"shape": [3, 5], "matrix": [3, 5], "block": [2, 2], "layout": "linear"}  # 2 × 3 blocks, all edges ragged


def tensors() -> Tensors:
    """Blocks (0, 0), (0, 2) and (1, 1)."""
    values = np.zeros((3, 2, 2), np.float32)
    values[:, 0, 0] = 1, 2, 3
    return {
        "w.bsr_values": ("F32", values),
        "w.bsr_crow_indices": ("I32", np.array([0, 2, 3], np.int32)),
        "w.bsr_col_indices": ("I32", np.array([0, 2, 1], np.int32)),
    }


def metadata(about: Any = None, **more: str) -> dict[str, str]:
    return {"sapp_bsr_version": "1", "sapp_bsr": json.dumps({"w": ABOUT if about is None else about}), **more}


def refusal(path: Path, act: Callable[[Path], object] = open_checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        act(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_the_valid_one_that_the_others_are_made_from(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", tensors(), metadata()))
    assert checkpoint.dense_array("w").tolist() == [[1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0]]


def test_the_metadata_is_as_specified() -> None:
    layout = MatrixLayout("conv", (4, 2, 3, 3))
    assert block_sparse_metadata({"c": (layout, BlockGrid(layout.matrix, (4, 8)))}, {"alias": "c"}) == {
        "format": "pt",
        "sapp_bsr_version": "1",
        "sapp_bsr": '{"c":{"shape":[4,2,3,3],"matrix":[4,18],"block":[4,8],"layout":"conv"}}',
        "sapp_tied": '{"alias":"c"}',
    }


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"sapp_bsr_version": "3"}, "block-sparse format of version '3'; this sapp reads versions 1 and 2: upgrade it"),
        ({"sapp_bsr_version": ""}, "block-sparse format of version ''; this sapp reads versions 1 and 2: upgrade it"),
        ({"sapp_bsr": "[]"}, "sapp_bsr in the metadata is not a JSON object"),
        ({"sapp_bsr": "{" * 9}, "sapp_bsr in the metadata is not JSON: Expecting property name enclosed in double quotes "
                                "(character 1); download or copy the file again"),
        ({"sapp_bsr": '{"w": 1, "w": 2}'}, "sapp_bsr in the metadata has 'w' twice"),
        ({"sapp_bsr": "{}"}, "'w.bsr_values': a part of a block-sparse weight that sapp_bsr in the metadata does not name"),
        ({"sapp_tied": '{"a": 1}'}, "'a': sapp_tied in the metadata does not give a name for it"),
        ({"sapp_tied": '{"a": "v"}'}, "'a': is tied to 'v', which is not in this checkpoint"),
        ({"sapp_tied": '{"a": "b", "b": "w"}'}, "'a': is tied to 'b', which is not in this checkpoint"),
        ({"sapp_tied": '{"w": "w"}'}, "'w': is an alias in sapp_tied and stored as well"),
        ({"sapp_tied": '{"w.bsr_values": "w"}'}, None),
    ],
)  # fmt: skip
def test_damaged_metadata(tmp_path: Path, about: dict[str, str], message: str | None) -> None:
    path = save(tmp_path / "x.safetensors", tensors(), metadata(**about))
    if message is None:  # an alias named like a part is odd, but no two things have one name
        assert open_checkpoint(path).tied == {"w.bsr_values": "w"}
    else:
        assert refusal(path) == message


MARKED = {"sapp_bsr_version": "2"}


def marker(*shape: int) -> dict[str, tuple[str, Any]]:
    return {"w": ("F32", np.empty(shape, np.float32))}


def test_a_marker_counts_nothing(tmp_path: Path) -> None:
    marked = open_checkpoint(save(tmp_path / "x.safetensors", {**tensors(), **marker(3, 0, 3)}, metadata(**MARKED)))
    plain = open_checkpoint(save(tmp_path / "y.safetensors", tensors(), metadata()))
    assert marked.block_sparse["w"].marker == 3
    assert marked.dense_names() == plain.dense_names() == ["w"]
    assert marked.bytes == plain.bytes
    assert marked.tensors.keys() == plain.tensors.keys()
    assert marked.dense_array("w").tolist() == plain.dense_array("w").tolist()
    assert marked.shape("w") == (3, 5)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (3, 0, 0), (2, 0, 1), (3, 1, 1), (3, 0, 1, 1), (3, 5)])
def test_what_is_not_a_marker(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "x.safetensors", {**tensors(), **marker(*shape)}, metadata(**MARKED))
    assert refusal(path) == "'w': is stored both dense and block-sparse"


def test_version_1_has_no_markers(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {**tensors(), **marker(3, 0, 3)}, metadata())
    assert refusal(path) == "'w': is stored both dense and block-sparse"


def test_a_marker_of_two_weights(tmp_path: Path) -> None:
    both = {**tensors(), **{name.replace("w", "v", 1): one for name, one in tensors().items()}, **marker(3, 0, 1)}
    both["v"] = both["w"]
    path = save(tmp_path / "x.safetensors", both, {**MARKED, "sapp_bsr": json.dumps({"w": ABOUT, "v": ABOUT})})
    assert refusal(path) == "'v': has the marker of another weight"


def test_version_2_may_name_weights_of_other_files(tmp_path: Path) -> None:
    about = metadata(**MARKED)
    save(tmp_path / "model-00001-of-00002.safetensors", {**tensors(), **marker(3, 0, 1)}, about)
    save(tmp_path / "model-00002-of-00002.safetensors", {"b": ("F32", np.ones((2, 2), np.float32))}, about)
    assert open_checkpoint(tmp_path).dense_names() == ["w", "b"]
    path = save(tmp_path / "x.safetensors", {"b": ("F32", np.ones((2, 2), np.float32))}, about)
    assert refusal(path) == "'w': sapp_bsr in the metadata names it, and no file of the checkpoint has it"


def test_metadata_without_a_version(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", tensors(), {"sapp_bsr": "{}"})
    assert refusal(path) == "sapp_bsr in the metadata without sapp_bsr_version"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (7, "its entry in sapp_bsr is not {shape, matrix, block, layout}"),
        ({**ABOUT, "more": 1}, "its entry in sapp_bsr is not {shape, matrix, block, layout}"),
        ({"layout": "rows"}, "unknown layout 'rows' in sapp_bsr"),
        ({"layout": ["linear"]}, "unknown layout ['linear'] in sapp_bsr"),
        ({"shape": [3]}, "the shape in sapp_bsr is not one of a linear weight"),
        ({"shape": [3, 5, 1]}, "the shape in sapp_bsr is not one of a linear weight"),
        ({"shape": [-3, -5]}, "the shape in sapp_bsr is not one of a linear weight"),
        ({"shape": "35"}, "the shape in sapp_bsr is not one of a linear weight"),
        ({"block": [2]}, "the block in sapp_bsr is not two positive numbers"),
        ({"block": [0, 2]}, "the block in sapp_bsr is not two positive numbers"),
        ({"block": [2, 2.0]}, "the block in sapp_bsr is not two positive numbers"),
        ({"matrix": [5, 3]}, "the matrix in sapp_bsr is not [3, 5], as shape and layout have it"),
        ({"layout": "transposed"}, "the matrix in sapp_bsr is not [5, 3], as shape and layout have it"),
        ({"block": [1, 2]}, "bsr_crow_indices is (3,); 3 block rows need (4,)"),
        ({"block": [2, 3]}, "bsr_values is (3, 2, 2), not (3, 2, 3)"),
        ({"block": [2, 2**40]}, "bsr_col_indices is (3,) on a grid of 2 blocks"),
        ({"shape": [2**32, 2**32], "matrix": [2**32, 2**32]},
         "a grid of 2,147,483,648 × 2,147,483,648 blocks is larger than the format allows"),
        ({"block": [2**62, 2**62]}, "a grid of 1 × 1 blocks is larger than the format allows"),
    ],
)  # fmt: skip
def test_a_damaged_entry(tmp_path: Path, change: Any, message: str) -> None:
    about = {**ABOUT, **change} if isinstance(change, dict) else change
    path = save(tmp_path / "x.safetensors", tensors(), metadata(about))
    assert refusal(path) == f"'w': {message}"


@pytest.mark.parametrize(
    ("part", "replacement", "message"),
    [
        ("values", None, "'w.bsr_values' is missing"),
        ("crow_indices", None, "'w.bsr_crow_indices' is missing"),
        ("col_indices", None, "'w.bsr_col_indices' is missing"),
        ("crow_indices", ("I64", np.array([0, 2, 3])), "its indices are I64 and I32, not I32"),
        ("col_indices", ("U32", np.array([0, 2, 1], np.uint32)), "its indices are I32 and U32, not I32"),
        ("crow_indices", ("I32", np.zeros((3, 1), np.int32)), "bsr_crow_indices is (3, 1); 2 block rows need (3,)"),
        ("crow_indices", ("I32", np.zeros(0, np.int32)), "bsr_crow_indices is (0,); 2 block rows need (3,)"),
        ("col_indices", ("I32", np.zeros((3, 1), np.int32)), "bsr_col_indices is (3, 1) on a grid of 6 blocks"),
        ("col_indices", ("I32", np.zeros(7, np.int32)), "bsr_col_indices is (7,) on a grid of 6 blocks"),
        ("values", ("F32", np.zeros((2, 2, 2), np.float32)), "bsr_values is (2, 2, 2), not (3, 2, 2)"),
        ("values", ("F32", np.zeros(12, np.float32)), "bsr_values is (12,), not (3, 2, 2)"),
        ("values", ("C64", np.zeros((3, 2, 2), np.complex64)), "weights of dtype C64 cannot be block-sparse"),
        ("values", ("F8_E8M0", np.zeros((3, 2, 2), np.uint8)), "weights of dtype F8_E8M0 cannot be block-sparse"),
    ],
)  # fmt: skip
def test_a_damaged_triple(tmp_path: Path, part: str, replacement: tuple[str, Bits] | None, message: str) -> None:
    damaged = tensors()
    del damaged[f"w.bsr_{part}"]
    if replacement is not None:
        damaged[f"w.bsr_{part}"] = replacement
    assert refusal(save(tmp_path / "x.safetensors", damaged, metadata())) == f"'w': {message}"


def statistics(path: Path) -> object:
    layout = MatrixLayout("linear", (3, 5))
    return block_statistics(open_checkpoint(path), "w", layout, BlockGrid((3, 5), (2, 2)))


@pytest.mark.parametrize(
    "act",
    [statistics, lambda path: open_checkpoint(path).matrix("w"), lambda path: open_checkpoint(path).dense_array("w")],
)
def test_indices_and_padding_are_checked_by_all_who_read_them(tmp_path: Path, act: Callable[[Path], object]) -> None:
    damaged = tensors()
    damaged["w.bsr_col_indices"][1][1] = 3
    path = save(tmp_path / "x.safetensors", damaged, metadata())
    assert refusal(path, act) == "'w': bsr_col_indices[1] is 3; there are 3 block columns"
    for place in ((1, 0, 1), (1, 1, 1), (2, 1, 0)):  # right of the matrix, and below it
        damaged = tensors()
        damaged["w.bsr_values"][1][place] = np.nan
        save(path, damaged, metadata())
        assert refusal(path, act) == "'w': bsr_values is not zero in the padding of its edge blocks"


def test_one_name_for_two_things(tmp_path: Path) -> None:
    both = {**tensors(), "w": ("F32", np.zeros((3, 5), np.float32))}
    assert refusal(save(tmp_path / "x.safetensors", both, metadata())) == "'w': is stored both dense and block-sparse"
    save(tmp_path / "a.safetensors", tensors(), metadata())
    save_floats(tmp_path / "b.safetensors", w=[1.0])
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'a.safetensors'}: 'w': is stored twice, in this file and in another shard"


def test_a_matrix_of_any_size_in_a_small_file(tmp_path: Path) -> None:
    layout = MatrixLayout("linear", (1, 2**57))
    grid = BlockGrid(layout.matrix, (1, 2**40))
    triple: Tensors = {
        "w.bsr_values": ("F32", np.zeros((0, 1, 2**40), np.float32)),
        "w.bsr_crow_indices": ("I32", np.zeros(2, np.int32)),
        "w.bsr_col_indices": ("I32", np.zeros(0, np.int32)),
    }
    path = save(tmp_path / "x.safetensors", triple, block_sparse_metadata({"w": (layout, grid)}, {}))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.shape("w"), len(checkpoint.matrix("w").values)) == ((1, 2**57), 0)
    found = block_statistics(checkpoint, "w", layout, grid)
    assert (found.norms.shape, found.kept.any(), found.nonzero, found.finite) == ((1, 2**17), False, 0, True)
    for act in (checkpoint.dense_array, checkpoint.dense_float32):
        with pytest.raises(ResourceError) as caught:
            act("w")
        assert str(caught.value).startswith(f"{path}: 'w': does not fit into memory: ")
    with pytest.raises(ResourceError, match="'w': does not fit into memory: "):
        block_statistics(checkpoint, "w", layout, BlockGrid(layout.matrix, (1, 1)))


def test_stored_blocks_may_be_zero(tmp_path: Path) -> None:
    """Writers leave them out; a reader counts what is there."""
    zero = tensors()
    zero["w.bsr_values"][1][1] = 0
    checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", zero, metadata()))
    layout = MatrixLayout("linear", (3, 5))
    found = block_statistics(checkpoint, "w", layout, BlockGrid((3, 5), (2, 2)))
    assert found.kept.tolist() == [[True, False, False], [False, True, False]]
    assert checkpoint.block_sparse["w"].kept == 3


def test_what_the_writer_writes_it_reads(tmp_path: Path) -> None:
    layout = MatrixLayout("conv", (2, 3, 1, 2))
    weight = np.arange(12, dtype=np.float32).reshape(layout.shape)
    path = save_block_sparse(tmp_path / "x.safetensors", "w", "F32", weight, layout, BlockGrid(layout.matrix, (1, 4)))
    assert open_checkpoint(path).dense_array("w").tolist() == weight.tolist()
