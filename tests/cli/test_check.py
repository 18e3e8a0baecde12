"""`sapp check`: whole output, for a terminal and for scripts, and the exit codes."""

import pytest

from tests.report.outputs import write_output


@pytest.fixture
def out(tmp_path):
    return write_output(tmp_path / "out")


def test_all_gates_met(sapp, out):
    size = (out / "sparse/model.safetensors").stat().st_size
    ran = sapp("check", out, "--min-sparsity", "0.4", "--max-size", "1kB", "--max-drop", "0.01")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "ok    min-sparsity   44.4 % of all prunable weights are zero, at least 40 % asked (66.7 % of the blocks of 1 pruned "
        "layer are removed; 43.6 % of the whole model is zero)",
        f"ok    max-size       {size} B ({size} bytes) in 1 file of block-sparse weights, at most 1.00 kB asked",
        "ok    max-drop       accuracy 0.9700 → 0.9600 (higher is better): 0.0100 worse, at most 0.01 worse asked",
        "ok    layouts-agree  3 weights and tensors are the same bit for bit, dense and block-sparse",
        "ok    hashes         2 files have the SHA-256 that manifest.json names",
        "ok    kept-blocks    2 blocks are recorded as kept, and these are the nonzero ones",
    ]


def test_a_gate_that_is_not_met_ends_with_3_and_the_reason(sapp, out):
    (out / "sparse/model.safetensors").unlink()
    (out / "sparse").rmdir()
    ran = sapp("check", out, "--min-sparsity", "0.7", "--of", "pruned")
    text = (
        "66.7 % of the blocks of 1 pruned layer are removed, at least 70 % asked (44.4 % of all prunable weights are zero; "
        "43.6 % of the whole model is zero)"
    )
    missing = "files do not match manifest.json: 'sparse/model.safetensors' is missing"
    assert ran.code == 3
    assert ran.out.splitlines() == [
        f"FAIL  min-sparsity   {text}",
        "n/a   layouts-agree  there is one layout only",
        f"FAIL  hashes         {missing}",
        "ok    kept-blocks    2 blocks are recorded as kept, and these are the nonzero ones",
    ]
    assert ran.err.splitlines() == [f"error: {out}: min-sparsity: {text}", f"error: {out}: hashes: {missing}"]


def test_json(sapp, out):
    ran = sapp("check", out, "--max-drop", "0.001", "--json")
    assert ran.code == 3
    assert ran.json == {
        "version": 1,
        "path": str(out),
        "met": False,
        "gates": [
            {
                "name": "max-drop",
                "outcome": "not met",
                "text": "accuracy 0.9700 → 0.9600 (higher is better): 0.0100 worse, at most 0.001 worse asked",
                "value": 0.01,
                "limit": 0.001,
            },
            {
                "name": "layouts-agree",
                "outcome": "met",
                "text": "3 weights and tensors are the same bit for bit, dense and block-sparse",
                "value": None,
                "limit": None,
            },
            {
                "name": "hashes",
                "outcome": "met",
                "text": "2 files have the SHA-256 that manifest.json names",
                "value": None,
                "limit": None,
            },
            {
                "name": "kept-blocks",
                "outcome": "met",
                "text": "2 blocks are recorded as kept, and these are the nonzero ones",
                "value": None,
                "limit": None,
            },
        ],
    }


def test_damaged_files_end_with_4(sapp, out):
    path = out / "sparse/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    ran = sapp("check", out)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-sparsity", "80"], "is a share from 0 to 1; write 0.8 for 80 %"),
        (["--min-sparsity", "nan"], "is a share from 0 to 1; write 0.8 for 80 %"),
        (["--max-drop", "inf"], "is not a finite number"),
        (["--metric", "f1"], "means nothing without --max-drop"),
        (["--max-size", "big"], "'big' is no size; write it as 500MB, 5GB or 4GiB"),
    ],
)
def test_mistakes(sapp, out, arguments, message):
    ran = sapp("check", out, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.replace("│", " ").split())


def test_what_prune_writes_is_whole(sapp, digits, tmp_path):
    pruned = tmp_path / "pruned"
    assert (
        sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--steps", "20", "-o", pruned).code
        == 0
    )
    ran = sapp("check", pruned, "--min-sparsity", "0.88", "--max-size", "200kB", "--max-drop", "1")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()] == ["ok"] * 6
