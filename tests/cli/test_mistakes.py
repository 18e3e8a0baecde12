"""What a table of commands cannot show: a damaged checkpoint wherever it is cut, and where an error came from."""

import pytest


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_a_checkpoint_that_ends_too_early(sapp, digits, tmp_path, kept):
    whole = (digits / "dense.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * kept)])
    ran = sapp("prune", tmp_path / "cut.safetensors", "-r", digits / "recipe.yaml", "-o", tmp_path / "out")
    assert ran.code == 4
    assert ran.err.startswith(f"error: {tmp_path / 'cut.safetensors'}: ")
    assert ran.err.endswith("download or copy the file again\n")
    assert len(ran.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cut.safetensors"]


def test_debugging_shows_where_an_error_came_from(sapp, tmp_path, monkeypatch):
    monkeypatch.setenv("SAPP_DEBUG", "1")
    ran = sapp("report", tmp_path / "none.safetensors")
    assert ran.code == 4
    assert "Traceback (most recent call last)" in ran.err
