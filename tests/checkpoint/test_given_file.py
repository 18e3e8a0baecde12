"""Files that the user named: a new one, or one that sapp wrote there before, and never another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sapp_cli.checkpoint.given_file import FileKind, begins_with, check_given, write_given
from sapp_cli.checkpoint.ownership import check_ownership, is_recorded
from sapp_cli.checkpoint.tensor_file import FileIdentity
from sapp_cli.errors import UsageError
from tests.checkpoint.outputs import an_output, write

NOTE = FileKind("a note of sapp", begins_with(b"sapp: "))


def refusal(path: Path) -> str:
    before = FileIdentity.of(path.lstat())
    with pytest.raises(UsageError) as caught:
        write_given(path, b"sapp: new", NOTE)
    assert FileIdentity.of(path.lstat()) == before
    with pytest.raises(UsageError, match="; "):
        check_given(path, NOTE)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_new_file_and_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "note"
    for text in (b"sapp: 1", b"sapp: 2"):
        write_given(path, text, NOTE)
        assert path.read_bytes() == text


def test_somebody_elses_file_stays(tmp_path: Path) -> None:
    write(tmp_path, "net.safetensors", "empty/x")
    message = "exists already and is not a note of sapp; give another name, or move that file elsewhere first"
    assert refusal(tmp_path / "net.safetensors") == message
    (tmp_path / "empty" / "x").write_bytes(b"")
    assert refusal(tmp_path / "empty" / "x") == message
    assert (tmp_path / "net.safetensors").read_text() == "net.safetensors"


def test_what_is_not_a_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "is a device or a pipe, not a regular file; give another name"
    assert refusal(Path("/dev/null")) == "is a device or a pipe, not a regular file; give another name"
    (tmp_path / "loop").symlink_to("loop")
    assert "give another name" in refusal(tmp_path / "loop")


def test_behind_a_link_lies_what_is_written(tmp_path: Path) -> None:
    write(tmp_path / "there", "mine")
    (tmp_path / "link").symlink_to("there/mine")
    assert refusal(tmp_path / "link").startswith("exists already and is not")
    (tmp_path / "there" / "mine").unlink()
    write_given(tmp_path / "link", b"sapp: 1", NOTE)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "mine").read_bytes() == b"sapp: 1"


def test_in_an_output_it_is_recorded_anew(tmp_path: Path) -> None:
    """Whatever it holds: sapp wrote it, as the manifest says."""
    source = write(tmp_path / "source", "config.json")
    out = an_output(tmp_path / "out", source, "sparsity.html")
    write_given(out / "sparsity.html", b"sapp: 2", NOTE)
    check_ownership(out, source)
    write_given(out / "note", b"sapp: 1", NOTE)  # a place of the user's choice
    assert not is_recorded(out / "note")
