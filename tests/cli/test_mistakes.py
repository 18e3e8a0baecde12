"""Mistakes of every kind: the exit code, the whole message, and nothing written."""

import pytest
from safetensors.numpy import load_file, save_file


def lines(ran):
    return [line.removeprefix("error: ") for line in ran.err.splitlines()]


@pytest.fixture
def check(sapp, digits, tmp_path):
    """Run `prune` with some mistake; whatever it is, nothing is written."""

    def run(*more, checkpoint=None, recipe=None, code=2):
        checkpoint = checkpoint or digits / "dense.safetensors"
        ran = sapp("prune", checkpoint, "-r", recipe or digits / "recipe.yaml", "-o", tmp_path / "out", *more)
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert "Traceback" not in ran.err
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return [line for line in lines(ran) if not line.startswith(("training:", str(checkpoint) + ": Seq"))]

    return run


def test_a_wrong_block_size(check):
    allowed = (
        "allowed: a whole number of at least 1 or a list of 2 of these (Rows and columns of a block of the weight seen as "
        "out × in: 16, or [16, 32])"
    )
    assert check("--block-size", "0") == [f"--block-size: prune.block_size: 0 is too small; {allowed}"]
    assert check("--block-size", "sixteen") == [f"--block-size: prune.block_size: 'sixteen' is not allowed; {allowed}"]


def test_blocks_larger_than_every_layer(check, digits):
    assert check("--block-size", "1024") == [
        f"{digits / 'recipe.yaml'}:10: prune: no layer would be pruned: 1 × a 1024×1024 block is larger than its 512×64 "
        "matrix; 1 × a 1024×1024 block is larger than its 512×512 matrix; 1 × rule 'output.weight'; take a smaller "
        "prune.block_size or prune.min_blocks, or change prune.rules"
    ]


def test_an_unknown_key(check, digits, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((digits / "recipe.yaml").read_text().replace("sparsity: 0.9", "sparsty: 0.9"))
    found = check(recipe=recipe)
    assert len(found) == 1
    assert found[0].startswith(f"{recipe}:12: prune.sparsty")
    assert "sparsity" in found[0].split("sparsty", 1)[1]


def test_a_rule_that_matches_nothing_names_file_line_and_the_nearest(check, digits, tmp_path):
    recipe = digits / "typo.yaml"
    recipe.write_text((digits / "recipe.yaml").read_text().replace("output.weight", "outptu.weight"))
    assert check(recipe=recipe) == [
        f"{recipe}:14: prune.rules[0].match: 'outptu.weight' matches none of 3 weights; nearest: 'output.weight'"
    ]


def test_a_run_too_short_for_its_timetable(check, digits):
    assert check("--steps", "9") == [
        "--steps: train.steps: 9 steps leave none for the phase 'dense' of round 0; this timetable of 3 phases needs at least "
        "10 steps"
    ]


def test_missing_files(check, digits, tmp_path):
    assert check(checkpoint=tmp_path / "none.safetensors", code=4) == [
        f"{tmp_path / 'none.safetensors'}: no such file or folder"
    ]
    assert check("--set", f"data.files.train={tmp_path / 'none.npz'}", code=4) == [
        f"data.files.train: no file {tmp_path / 'none.npz'}"
    ]
    assert check(recipe=tmp_path / "none.yaml")[0].startswith(f"{tmp_path / 'none.yaml'}: no such recipe")


def test_a_checkpoint_that_does_not_fit_the_model(check, digits, tmp_path):
    tensors = load_file(digits / "dense.safetensors")
    tensors["hidden2.weight"] = tensors["hidden2.weight"][:, :100].copy()
    save_file(tensors, tmp_path / "other.safetensors")
    assert check(checkpoint=tmp_path / "other.safetensors", code=4) == [
        f"{tmp_path / 'other.safetensors'} does not fit the model of {digits / 'digits.py'}:mlp:",
        "  'hidden2.weight' is (512, 100), the model wants (512, 512)",
    ]


def test_a_damaged_checkpoint(check, digits, tmp_path):
    whole = (digits / "dense.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    found = check(checkpoint=tmp_path / "cut.safetensors", code=4)
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path / 'cut.safetensors'}: ")
    assert "hidden" in found[0] or "output" in found[0]


def test_no_output_folder(sapp, digits):
    ran = sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml")
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "Error: Invalid value for --out / -o: name the folder to write")


def test_an_output_below_a_file(sapp, digits, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    ran = sapp("prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", out)
    assert (ran.code, ran.err) == (
        2,
        f"error: {out}: {tmp_path / 'file'} is a file, so nothing can lie in it; give another folder with -o\n",
    )


def test_an_unknown_verb_and_an_unknown_flag(sapp):
    assert sapp("prnue").code == 2
    assert sapp("prune", "x", "-r", "y", "--sparcity", "1").code == 2


def test_debugging_shows_where_an_error_came_from(sapp, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPP_DEBUG", "1")
    ran = sapp("report", tmp_path / "none.safetensors")
    assert ran.code == 4
    assert "Traceback (most recent call last)" in ran.err
