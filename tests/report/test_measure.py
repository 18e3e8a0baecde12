"""Counting in files: hand-worked figures, every storage, and memory that does not grow with the tensors."""

import tracemalloc

import numpy as np
import pytest

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.report.inspect import layer_facts
from sapp_cli.report.measure import PIECE_BYTES, count_entries, measure
from sapp_cli.report.sparsity import LayerFacts, ModelSparsity
from tests.checkpoint.files import save, save_block_sparse, save_floats
from tests.report.outputs import write_output

EXPECTED = ModelSparsity(
    parameters=24 + 12 + 3,
    nonzero=8 + 12 + 2,
    sparsity=17 / 39,
    prunable_parameters=36,
    prunable_sparsity=16 / 36,
    bytes_dense=4 * 39,
    # 2 blocks of 4 entries, 2 block rows + 1 and 2 columns of int32; then the other tensors
    bytes_sparse=2 * 16 + 4 * 3 + 4 * 2 + 4 * 15,
)


@pytest.mark.parametrize("part", ["", "sparse", "model.safetensors", "sparse/model.safetensors"])
def test_an_output_measures_the_same_in_either_layout(tmp_path, part):
    checkpoint = open_checkpoint(write_output(tmp_path / "out") / part)
    report = measure(checkpoint, layer_facts(checkpoint, None))
    assert report.model == EXPECTED
    first, second = report.layers
    assert (first.kept_blocks, first.blocks, first.block_sparsity, first.sparsity) == (2, 6, 4 / 6, 16 / 24)
    assert (first.bytes_dense, first.bytes_sparse, first.target, first.pruned) == (96, 52, 0.65, True)
    assert (second.sparsity, second.pruned, second.reason) == (0.0, False, "rule 'second*'")
    assert second.bytes_sparse == second.bytes_dense == 48
    assert report.pruned_block_sparsity == 4 / 6


def test_another_block_size_forgets_the_decisions_of_the_run(tmp_path):
    checkpoint = open_checkpoint(write_output(tmp_path / "out"))
    first, _ = measure(checkpoint, layer_facts(checkpoint, (4, 1))).layers
    assert (first.block, first.blocks, first.kept_blocks) == ((4, 1), 6, 4)  # the last two columns are zero
    assert (first.pruned, first.target) == (True, None)


def test_a_foreign_checkpoint_is_pruned_where_a_block_is_zero(tmp_path):
    weight = np.ones((20, 20), np.float32)
    weight[16:, :16] = 0
    path = save_floats(
        tmp_path / "model.safetensors", **{"a.weight": weight, "b.weight": np.ones((2, 2)), "bias": [0.0]}
    )
    checkpoint = open_checkpoint(path)
    first, second = measure(checkpoint, layer_facts(checkpoint, None)).layers
    assert (first.block, first.blocks, first.kept_blocks, first.pruned) == ((16, 16), 4, 3, True)
    assert first.sparsity == 64 / 400
    assert (second.blocks, second.kept_blocks, second.pruned) == (1, 1, False)


def test_ties_count_once_and_integers_not_at_all(tmp_path):
    layout, grid = MatrixLayout("linear", (4, 4)), BlockGrid((4, 4), (2, 2))
    path = save_block_sparse(
        tmp_path / "model.safetensors", "a", "F32", np.eye(4, dtype=np.float32), layout, grid, alias="a"
    )
    checkpoint = open_checkpoint(path)
    facts = layer_facts(checkpoint, None)
    assert [fact.name for fact in facts] == ["a"]
    named = LayerFacts("alias", (4, 4), 4, True, True, "", layout, grid)
    for layers in (facts, [named], []):
        model = measure(checkpoint, layers).model
        assert (model.parameters, model.nonzero) == (16, 4)
    integers = open_checkpoint(save(tmp_path / "i.safetensors", {"steps": ("I64", np.zeros(3, np.int64))}))
    assert measure(integers, []).model == ModelSparsity(0, 0, 0.0, 0, 0.0, 24, 24)


def test_halves_of_the_storage_dtypes_count_as_numpy_counts_them(tmp_path):
    values = np.array([[0.0, -0.0, 1.0], [2.0, 0.0, -3.0]], np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = save(tmp_path / "m.safetensors", {"f16": ("F16", values.astype(np.float16)), "bf16": ("BF16", bf16)})
    checkpoint = open_checkpoint(path)
    assert [count_entries(checkpoint, name) for name in ("f16", "bf16")] == [3, 3]


def test_a_tensor_of_one_long_row_is_counted_in_pieces(tmp_path):
    row = np.ones((1, 4 * PIECE_BYTES), np.float32)  # 16 MiB
    row[0, ::3] = 0
    path = save_floats(tmp_path / "m.safetensors", row=row)
    expected = int(np.count_nonzero(row))
    del row
    checkpoint = open_checkpoint(path)
    tracemalloc.start()
    found = measure(checkpoint, []).model
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.nonzero == expected
    assert peak < 4 * PIECE_BYTES


def test_shares_are_the_nearest_number_to_the_true_one(tmp_path):
    """1 − 8/10 is a hair less than 0.2, and a gate of 0.2 would fail on it."""
    path = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.repeat([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1]], 2, 0)})
    checkpoint = open_checkpoint(path)
    assert measure(checkpoint, layer_facts(checkpoint, (1, 1))).model.sparsity == 0.2


def test_the_report_can_be_put_in_order(tmp_path):
    sizes = {"b.weight": (2, 2), "a.weight": (4, 4), "c.weight": (1, 3)}
    tensors = {name: np.ones(shape) for name, shape in sizes.items()}
    tensors["c.weight"][0, 0] = 0
    checkpoint = open_checkpoint(save_floats(tmp_path / "m.safetensors", **tensors))
    report = measure(checkpoint, layer_facts(checkpoint, (1, 1)))

    def names(order):
        return "".join(layer.name[0] for layer in report.ordered(order).layers)

    assert [names(order) for order in (None, "name", "size", "sparsity", "blocks")] == [
        "bac",
        "abc",
        "abc",
        "cba",
        "abc",
    ]
