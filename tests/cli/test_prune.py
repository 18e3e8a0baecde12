"""`sapp prune`, whole: what it writes, what it says, that it repeats, and what it leaves behind when it cannot."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from sapp_cli._version import __version__
from sapp_cli.checkpoint.source import open_checkpoint
from tests.runs import Running, hashes


def prune(sapp, digits, out, *more):
    return sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", out, *more)


@pytest.fixture(scope="module")
def output(digits, tmp_path_factory):
    """OUT of one run, and the run's result as JSON."""
    out = tmp_path_factory.mktemp("prune") / "out"
    command = [sys.executable, "-m", "sapp_cli", "prune", str(digits / "dense.safetensors")]
    ran = subprocess.run(
        [*command, "-r", str(digits / "recipe.yaml"), "-o", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return out, json.loads(ran.stdout), ran.stderr


def test_out_holds_what_the_contract_says(output):
    out, result, _ = output
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "README.md",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "sparse/model.safetensors",
        "sparsity.html",
        "sparsity.json",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert result["out"] == str(out)


def test_layers_reach_their_target_and_the_rest_keeps_its_shape(output, digits):
    out, _, _ = output
    dense, source = load_file(out / "model.safetensors"), load_file(digits / "dense.safetensors")
    assert list(dense) == list(source)
    counts = []
    for name, columns in (("hidden1.weight", 8), ("hidden2.weight", 64)):
        blocks = dense[name].reshape(64, 8, columns, 8).transpose(0, 2, 1, 3)
        kept = (blocks != 0).any((2, 3))
        counts.append(int(kept.sum()))
        assert not np.signbit(blocks[~kept]).any()
    # Every block costs the same, so the budget is one of blocks: ⌈0.9·512⌉ = 461 and ⌈0.9·4096⌉ = 3687 go, whichever.
    assert sum(counts) == (512 - 461) + (4096 - 3687)
    assert (dense["output.weight"] != 0).all()


def test_the_sparse_file_is_the_dense_one_bit_for_bit(output):
    out, _, _ = output
    dense, sparse = open_checkpoint(out), open_checkpoint(out / "sparse")
    assert set(sparse.block_sparse) == {"hidden1.weight", "hidden2.weight"}
    for name in dense.tensors:
        assert np.array_equal(dense.array(name), sparse.dense_array(name)), name


def test_the_manifest_says_what_happened(output, digits):
    out, result, _ = output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sapp_version"] == __version__
    assert manifest["outputs"] == hashes(out)
    assert manifest["inputs"]["dense.safetensors"] == hashes(digits)["dense.safetensors"]
    assert set(manifest["inputs"]) == {
        "dense.safetensors",
        "data.files.train/train.npz",
        "data.files.validation/validation.npz",
        "model.factory/digits.py",
    }
    assert manifest["phases"] == [
        {"phase": "dense", "round": 0, "first_step": 1, "last_step": 8},
        {"phase": "sparsification", "round": 1, "first_step": 9, "last_step": 24},
        {"phase": "sparse", "round": 0, "first_step": 25, "last_step": 60},
    ]
    accuracy = manifest["metrics"]["accuracy"]
    assert accuracy["higher_is_better"] is True
    assert manifest["metrics"]["loss"]["higher_is_better"] is False
    assert accuracy["pruned"] > accuracy["dense"] - 0.05
    assert result["metrics"] == manifest["metrics"]


def test_metrics_jsonl_has_the_logged_steps_and_every_evaluation(output):
    out, result, _ = output
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 9, 20, 25, 30, 40, 60, 60]
    evaluated = [line["step"] for line in lines if "metrics" in line]
    assert evaluated == [0, 30, 60]
    assert lines[-1]["metrics"]["accuracy"] == result["metrics"]["accuracy"]["pruned"]
    assert lines[3]["phase"] == "sparsification"
    assert lines[4]["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_without_a_terminal_progress_is_plain_lines_on_stderr(output):
    _, _, stderr = output
    lines = stderr.splitlines()
    assert lines[0].endswith("dense.safetensors: Sequential, 301,066 parameters")
    assert any(line.startswith("step 25/60  sparse  sparsity 90.0 %  loss ") for line in lines)
    assert "\x1b" not in stderr
    assert "\r" not in stderr


def test_the_card_and_the_written_recipe(output, sapp):
    out, result, _ = output
    card = (out / "README.md").read_text()
    accuracy = result["metrics"]["accuracy"]
    assert f"| accuracy (higher is better) | {accuracy['dense']:.4f} | {accuracy['pruned']:.4f} |" in card
    assert "60 steps of fine-tuning, 8×8 blocks, 90.0 % of the blocks of 2 layers removed (90.0 % requested)." in card
    evaluated = sapp("eval", out, "-r", out / "recipe.yaml", "--json")
    assert evaluated.json["metrics"]["accuracy"] == accuracy["pruned"]
    sparse = sapp("eval", out / "sparse", "-r", out / "recipe.yaml", "--json")
    assert sparse.json["metrics"] == evaluated.json["metrics"]


def test_one_seed_gives_the_same_bytes_and_another_does_not(output, digits, tmp_path):
    out, _, _ = output
    found = []
    for seed in (0, 1):
        again = tmp_path / str(seed)
        command = ["prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", again, "--seed", seed]
        code, said = Running(tmp_path / "said.log", *map(str, command), "--quiet").finish()
        assert code == 0, said
        found.append(hashes(again))
    assert found[0] == hashes(out)
    assert found[1] != found[0]


@pytest.mark.parametrize("method", ["acdc", "powerprop", "magnitude", "gradual-magnitude"])
def test_every_method_reaches_the_target(sapp, digits, tmp_path, method):
    ran = prune(
        sapp, digits, tmp_path / "out", "--method", method, "--block-size", "8x16", "--sparsity", "0.8", "--json"
    )
    assert ran.code == 0
    layers = {layer["name"]: layer for layer in ran.json["layers"]}
    assert (layers["hidden2.weight"]["blocks"], layers["hidden2.weight"]["kept_blocks"]) == (2048, 409)
    assert layers["hidden1.weight"]["block"] == [8, 16]
    assert ran.json["metrics"]["accuracy"]["pruned"] > 0.8


@pytest.mark.parametrize(
    ("layout", "files"),
    [("dense", {"model.safetensors"}), ("bsr", {"sparse/model.safetensors"})],
)
def test_one_layout_alone(sapp, digits, tmp_path, layout, files):
    ran = prune(sapp, digits, tmp_path / "out", "--layout", layout, "--steps", "12")
    assert (ran.code, set(hashes(tmp_path / "out"))) == (0, files)
    assert sapp("eval", tmp_path / "out", "-r", digits / "recipe.yaml").code == 0


def test_smaller_shards(sapp, digits, tmp_path):
    ran = prune(sapp, digits, tmp_path / "out", "--max-shard-size", "500KB", "--steps", "12")
    assert ran.code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*"))
    assert names == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    assert sapp("eval", tmp_path / "out", "-r", digits / "recipe.yaml").code == 0


def test_out_that_exists_is_kept_unless_told_otherwise(sapp, digits, tmp_path):
    out = tmp_path / "out"
    assert prune(sapp, digits, out, "--steps", "12").code == 0
    before = hashes(out)
    ran = prune(sapp, digits, out, "--steps", "13")
    assert ran.code == 2
    assert ran.err == f"error: {out}: exists already; give another folder with -o, or --overwrite to replace it\n"
    assert hashes(out) == before
    assert prune(sapp, digits, out, "--steps", "13", "--overwrite").code == 0
    assert hashes(out) != before


def test_a_run_that_diverges_says_so_and_writes_nothing(sapp, digits, tmp_path):
    ran = prune(sapp, digits, tmp_path / "out", "--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e6")
    assert ran.code == 6
    assert "training diverged. Lower optimizer.lr (now 1e+06)" in ran.err
    assert list(tmp_path.iterdir()) == []
