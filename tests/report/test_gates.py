"""Every gate, met, not met and where it does not apply: its figure and its whole text."""

import json

import numpy as np
import pytest

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError, GateError
from sapp_cli.report.check import Limits, check
from sapp_cli.report.gates import check_drop
from sapp_cli.report.integrity import check_agreement
from sapp_cli.report.run import RunMetric, RunRecord
from tests.checkpoint.files import save, save_floats
from tests.report.outputs import BIAS, FIRST, SECOND, write_manifest, write_output


@pytest.fixture
def out(tmp_path):
    return write_output(tmp_path / "out")


def gate(path, name, **limits):
    found = [gate for gate in check(path, Limits(**limits)).gates if gate.name == name]
    assert len(found) == 1
    return found[0].outcome, found[0].text


@pytest.mark.parametrize(
    ("of", "limit", "outcome", "text"),
    [
        (
            "prunable",
            0.4,
            "met",
            "44.4 % of all prunable weights are zero, at least 40 % asked (66.7 % of the blocks of 1 pruned layer are "
            "removed; 43.6 % of the whole model is zero)",
        ),
        (
            "pruned",
            0.6667,
            "not met",
            "66.7 % of the blocks of 1 pruned layer are removed, at least 66.67 % asked (44.4 % of all prunable weights "
            "are zero; 43.6 % of the whole model is zero)",
        ),
        (
            "model",
            0.4359,
            "not met",
            "43.6 % of the whole model is zero, at least 43.59 % asked (44.4 % of all prunable weights are zero; 66.7 % of "
            "the blocks of 1 pruned layer are removed)",
        ),
    ],
)
def test_min_sparsity(out, of, limit, outcome, text):
    assert gate(out, "min-sparsity", min_sparsity=limit, sparsity_of=of) == (outcome, text)


def test_max_size_is_of_the_block_sparse_file_where_there_is_one(out, tmp_path):
    size = (out / "sparse/model.safetensors").stat().st_size
    text = f"{size} B ({size} bytes) in 1 file of block-sparse weights, at most {size} B asked"
    assert gate(out, "max-size", max_size=size) == ("met", text)
    assert gate(out, "max-size", max_size=size - 1)[0] == "not met"
    dense = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    size = dense.stat().st_size
    text = f"{size} B ({size} bytes) in 1 file of dense weights, at most 1.00 kB asked"
    assert gate(dense, "max-size", max_size=1000) == ("met", text)


@pytest.mark.parametrize(
    ("metric", "limit", "outcome", "text"),
    [
        (None, 0.01, "met", "accuracy 0.9700 → 0.9600 (higher is better): 0.0100 worse, at most 0.01 worse asked"),
        (
            None,
            0.0099,
            "not met",
            "accuracy 0.9700 → 0.9600 (higher is better): 0.0100 worse, at most 0.0099 worse asked",
        ),
        ("loss", 0.0, "met", "loss 0.5000 → 0.4500 (lower is better): 0.0500 better, at most 0 worse asked"),
        ("loss", -0.06, "not met", "loss 0.5000 → 0.4500 (lower is better): 0.0500 better, at most -0.06 worse asked"),
        ("f1", 1.0, "not met", "manifest.json has no metric 'f1', only accuracy, loss"),
    ],
)
def test_max_drop(out, metric, limit, outcome, text):
    assert gate(out, "max-drop", max_drop=limit, metric=metric) == (outcome, text)


def test_max_drop_without_a_figure_is_not_met(tmp_path):
    path = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    nothing = "there are no metrics to judge by: no manifest.json of sapp with them"
    assert gate(path, "max-drop", max_drop=1.0) == ("not met", nothing)
    run = RunRecord("magnitude", 1, "0.1.0", {"loss": RunMetric(0.5, float("nan"), False)})
    found = check_drop(run, 1.0, None)
    assert (found.outcome, found.text) == ("not met", "loss 0.5000 → nan is not a finite number")


def test_an_untouched_output_is_whole(out):
    result = check(out, Limits())
    assert [(gate.name, gate.outcome, gate.text) for gate in result.gates] == [
        ("layouts-agree", "met", "3 weights and tensors are the same bit for bit, dense and block-sparse"),
        ("hashes", "met", "2 files have the SHA-256 that manifest.json names"),
        ("kept-blocks", "met", "2 blocks are recorded as kept, and these are the nonzero ones"),
    ]
    result.raise_if_failed()


def test_what_does_not_apply_says_so(tmp_path):
    path = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    assert [(gate.outcome, gate.text) for gate in check(path, Limits()).gates] == [
        ("does not apply", "there is one layout only"),
        ("does not apply", "there is no manifest.json of sapp"),
        ("does not apply", "there is neither a sparsity.json nor a block-sparse weight"),
    ]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"first.weight": FIRST + 1, "second.weight": SECOND, "second.bias": BIAS}, "'first.weight' has other bits"),
        ({"first.weight": FIRST, "second.weight": SECOND, "second.bias": -BIAS}, "'second.bias' has other bits"),
        ({"first.weight": FIRST, "second.weight": SECOND}, "'second.bias' is in the block-sparse files only"),
        (
            {"first.weight": FIRST.T, "second.weight": SECOND, "second.bias": BIAS},
            "'first.weight' is F32 of 6×4 dense, F32 of 4×6 block-sparse",
        ),
    ],
)
def test_layouts_that_disagree(tmp_path, tensors, problem):
    out = write_output(tmp_path / "out")
    (out / "sparsity.json").unlink()
    save_floats(out / "model.safetensors", **tensors)
    write_manifest(out)
    assert gate(out, "layouts-agree") == ("not met", f"dense and block-sparse files differ: {problem}")


def test_negative_zeros_are_other_bits(out):
    dense = FIRST.copy()
    dense[0, 5] = -0.0
    save_floats(out / "model.safetensors", **{"first.weight": dense, "second.weight": SECOND, "second.bias": BIAS})
    found = check_agreement(open_checkpoint(out), open_checkpoint(out / "sparse"))
    assert found.text == "dense and block-sparse files differ: 'first.weight' has other bits"


def test_files_that_are_not_the_ones_written(out):
    save_floats(out / "model.safetensors", **{"first.weight": FIRST, "second.weight": SECOND + 1, "second.bias": BIAS})
    assert gate(out, "hashes") == (
        "not met",
        "files do not match manifest.json: 'model.safetensors' is not the file that was written",
    )
    write_manifest(out, outputs={"gone.safetensors": "00", "sparse/model.safetensors": "00"})
    assert gate(out, "hashes")[1] == (
        "files do not match manifest.json: 'gone.safetensors' is missing; 'sparse/model.safetensors' is not the file that "
        "was written; 'model.safetensors' is not in it"
    )
    write_manifest(out, outputs={})
    assert gate(out, "hashes") == ("not met", "manifest.json names no files")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\..\\b"])
def test_a_manifest_that_points_outside_is_damaged(out, name):
    write_manifest(out, outputs={name: "00"})
    with pytest.raises(CheckpointError) as error:
        check(out, Limits())
    assert str(error.value) == f"{out / 'manifest.json'}: names '{name}', which is outside its folder"


def test_records_that_the_weights_do_not_bear_out(out):
    path = out / "sparsity.json"
    document = json.loads(path.read_text())
    document["layers"][0]["kept_blocks"] = 3
    document["layers"][1]["sparsity"] = 0.5
    document["layers"].append({**document["layers"][1], "name": "third.weight"})
    path.write_text(json.dumps(document))
    assert gate(out, "kept-blocks") == (
        "not met",
        "records and weights differ: 'first.weight' has 2 kept blocks, sparsity.json says 3; 'second.weight' has a sparsity "
        "of 0.0, sparsity.json says 0.5; 'third.weight' is in sparsity.json, not in the weights",
    )


def test_stored_blocks_of_zeros_are_no_kept_blocks(tmp_path):
    tensors = {
        "a.bsr_values": ("F32", np.zeros((2, 1, 1), np.float32)),
        "a.bsr_crow_indices": ("I32", np.array([0, 1, 2], np.int32)),
        "a.bsr_col_indices": ("I32", np.array([0, 1], np.int32)),
    }
    tensors["a.bsr_values"][1][0] = 1
    about = {"a": {"shape": [2, 2], "matrix": [2, 2], "block": [1, 1], "layout": "linear"}}
    path = save(tmp_path / "m.safetensors", tensors, {"sapp_bsr_version": "1", "sapp_bsr": json.dumps(about)})
    assert gate(path, "kept-blocks") == (
        "not met",
        "records and weights differ: 'a' stores 1 block of zeros only",
    )


def test_a_failed_check_says_every_reason(out):
    result = check(out, Limits(min_sparsity=0.99, max_size=1))
    with pytest.raises(GateError) as error:
        result.raise_if_failed()
    size = (out / "sparse/model.safetensors").stat().st_size
    assert str(error.value).splitlines() == [
        f"{out}: min-sparsity: 44.4 % of all prunable weights are zero, at least 99 % asked (66.7 % of the blocks of 1 pruned "
        "layer are removed; 43.6 % of the whole model is zero)",
        f"{out}: max-size: {size} B ({size} bytes) in 1 file of block-sparse weights, at most 1 B asked",
    ]


def test_a_folder_named_sparse_without_weights_is_no_layout(tmp_path):
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "readme.txt").write_text("of something else")
    save_floats(tmp_path / "model.safetensors", **{"a.weight": np.ones((2, 2))})
    assert gate(tmp_path, "layouts-agree") == ("does not apply", "there is one layout only")


def test_layouts_agree_for_ties_shards_and_empty_tensors(tmp_path):
    out = write_output(tmp_path / "out", dense=False, sparse=False)
    (out / "sparsity.json").unlink()
    tensors = {
        "a": ("F32", SECOND),
        "b": ("F32", SECOND),
        "none": ("I64", np.zeros((0, 3), np.int64)),
        "one": ("F64", np.array(2.5)),
    }
    save(out / "model.safetensors", tensors)
    stored = {name: tensors[name] for name in ("b", "none", "one")}
    save(out / "sparse/model.safetensors", stored, {"sapp_tied": '{"a": "b"}'})
    found = check_agreement(open_checkpoint(out), open_checkpoint(out / "sparse"))
    assert found.text == "4 weights and tensors are the same bit for bit, dense and block-sparse"
