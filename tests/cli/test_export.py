"""`sapp export`: bit-exact in both directions, an output like any other, and what it refuses."""

import json

import numpy as np
import pytest

from tests.checkpoint.files import save_floats
from tests.report.outputs import MANIFEST, write_output


@pytest.fixture
def out(tmp_path):
    return write_output(tmp_path / "out")


def test_there_and_back_again(sapp, out, tmp_path):
    bsr, dense = tmp_path / "bsr", tmp_path / "dense"
    ran = sapp("export", out / "model.safetensors", "-o", bsr, "--layout", "bsr")
    size = (bsr / "sparse/model.safetensors").stat().st_size
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"1 of 2 layers are pruned\nwrote {size} B block-sparse to {bsr}\n"
    assert sapp("export", bsr, "-o", dense, "--layout", "dense").code == 0
    assert (dense / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (bsr / "sparse/model.safetensors").read_bytes() == (out / "sparse/model.safetensors").read_bytes()


def test_what_the_run_left_goes_along(sapp, out, tmp_path):
    (out / "config.json").write_text('{"model_type": "x"}')
    (out / "recipe.yaml").write_text("train: {steps: 40}\n")
    (out / "README.md").write_text("# the card\n")
    target = tmp_path / "target"
    ran = sapp("export", out, "-o", target, "--layout", "dense", "--json")
    assert sorted(file.name for file in target.iterdir()) == [
        "README.md",
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "sparsity.html",
        "sparsity.json",
    ]
    assert (target / "metrics.jsonl").read_text() == (out / "metrics.jsonl").read_text()
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["metrics"] == MANIFEST["metrics"]
    assert list(manifest["outputs"]) == ["model.safetensors"]
    assert ran.json["out"] == str(target)
    assert ran.json["files"] == {"model.safetensors": (target / "model.safetensors").stat().st_size}
    assert ran.json["layers"] == json.loads((target / "sparsity.json").read_text())["layers"]
    assert ran.json["layers"][0]["target"] == 0.65
    assert sapp("check", target, "--max-drop", "0.01", "--min-sparsity", "0.4").code == 0
    both = tmp_path / "both"
    assert sapp("export", out, "-o", both, "--layout", "both").code == 0
    card = (both / "README.md").read_text()
    assert "How to load it" in card
    assert "model.load_state_dict" in card
    assert "## How to load it\n\n`sparse/`" not in card
    assert sapp("check", both).out.count("ok ") == 3


def test_a_checkpoint_pruned_elsewhere(sapp, tmp_path):
    weight = np.ones((8, 8), np.float32)
    weight[:4] = 0
    source = save_floats(tmp_path / "m.safetensors", **{"a.weight": weight, "b.weight": np.ones((8, 8)), "c": [1.0]})
    ran = sapp("export", source, "-o", tmp_path / "out", "--layout", "both", "--block-size", "4x2", "--json")
    layers = {layer["name"]: layer for layer in ran.json["layers"]}
    assert (layers["a.weight"]["pruned"], layers["a.weight"]["block"], layers["a.weight"]["kept_blocks"]) == (
        True,
        [4, 2],
        4,
    )
    assert layers["b.weight"]["pruned"] is False
    ran = sapp("check", tmp_path / "out", "--min-sparsity", "0.25")
    assert ran.code == 0
    assert "3 weights and tensors are the same bit for bit" in ran.out
    assert "4 blocks are recorded as kept" not in ran.out  # those of the dense layer are counted too
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest["inputs"]) == ["m.safetensors"]
    assert list(manifest["outputs"]) == ["model.safetensors", "sparse/model.safetensors"]


def test_a_weight_stays_dense_where_blocks_would_not_make_it_smaller(sapp, tmp_path):
    weight = np.ones((2, 64), np.float32)
    weight[0, 0] = 0
    source = save_floats(tmp_path / "m.safetensors", **{"a.weight": weight})
    ran = sapp("export", source, "-o", tmp_path / "out", "--layout", "bsr", "--block-size", "1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"error: {source}: no weight becomes smaller without its zero blocks of 1×1; try a smaller --block-size, or prune "
        "first\n"
    )
    assert not (tmp_path / "out").exists()


def test_shards(sapp, out, tmp_path):
    target = tmp_path / "target"
    assert sapp("export", out, "-o", target, "--layout", "both", "--max-shard-size", "100").code == 0
    assert sorted(file.name for file in (target / "sparse").iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert sapp("check", target).code == 0


def test_other_blocks_than_the_stored_ones_are_refused(sapp, out, tmp_path):
    ran = sapp("export", out / "sparse", "-o", tmp_path / "target", "--layout", "bsr", "--block-size", "4")
    assert ran.code == 2
    assert ran.err == (
        "error: 'first.weight' is stored in blocks of 2×2, not 4×4; leave --block-size out, or export --layout dense first\n"
    )


def test_an_output_that_is_there_is_replaced_only_when_asked(sapp, out, tmp_path):
    target = tmp_path / "target"
    assert sapp("export", out, "-o", target, "--layout", "dense").code == 0
    ran = sapp("export", out, "-o", target, "--layout", "bsr")
    assert (ran.code, ran.err) == (
        2,
        f"error: {target}: exists already; give another folder with -o, or --overwrite to replace it\n",
    )
    assert sapp("export", out, "-o", target, "--layout", "bsr", "--overwrite").code == 0
    assert not (target / "model.safetensors").exists()
    assert sapp("export", out, "-o", out, "--layout", "dense", "--overwrite").code == 2
