"""`--overwrite` removes what sapp wrote, as it was written, and names all else."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sapp_cli.checkpoint.output import MANIFEST
from sapp_cli.checkpoint.ownership import check_ownership, is_recorded, recorded_anew
from sapp_cli.errors import CheckpointError, UsageError
from tests.checkpoint.outputs import an_earlier_output, an_output, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", "config.json", "README.md", "vocab.txt")


@pytest.fixture
def out(tmp_path: Path, source: Path) -> Path:
    return an_output(tmp_path / "out", source, "README.md", "sparse/config.json", "sparsity.html")


def refusal(out: Path, source: Path) -> str:
    with pytest.raises(UsageError) as caught:
        check_ownership(out, source)
    text = str(caught.value).removeprefix(f"{out}: --overwrite would remove ")
    return text.removesuffix("; move that elsewhere, or give another folder with -o")


def test_the_manifest_lists_every_file_but_itself(out: Path) -> None:
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["files"] == {
        name: {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("README.md", "sparse/config.json", "sparsity.html")
    }


def test_what_sapp_wrote_may_go(out: Path, source: Path) -> None:
    check_ownership(out, source)
    (out / "README.md").unlink()
    check_ownership(out, source)


def test_what_somebody_put_there_is_named(out: Path, source: Path) -> None:
    write(out, "notes.txt", "src/a.tex", "src/b.tex", "sparse/mine.txt")
    (out / ".git").mkdir()
    (out / "link").symlink_to("README.md")
    assert refusal(out, source) == ".git/, link, notes.txt, sparse/mine.txt, src/ (not written by sapp)"


def test_what_somebody_changed_is_named(out: Path, source: Path) -> None:
    (out / "README.md").write_text("README.mD")
    assert refusal(out, source) == "README.md (changed since sapp wrote it)"
    (out / "sparse" / "config.json").unlink()
    (out / "sparse" / "config.json").symlink_to("../README.md")
    write(out, "a")
    both = "a (not written by sapp) and README.md, sparse/config.json (changed since sapp wrote them)"
    assert refusal(out, source) == both


def test_many_names_are_cut_and_no_letter_of_them_reaches_a_terminal(out: Path, source: Path) -> None:
    write(out, *(f"n{i:02}" for i in range(13)), "\x1b[2J")
    assert refusal(out, source) == (
        "'\\x1b[2J', n00, n01, n02, n03, n04, n05, n06, n07, n08 and 4 more (not written by sapp)"
    )


def test_a_name_that_is_not_utf8(tmp_path: Path, source: Path) -> None:
    name = os.fsdecode(b"n\xff")
    out = an_output(tmp_path / "out", source, name)
    assert json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"].keys() == {"n\\xff"}
    check_ownership(out, source)
    (out / name).write_text("mine")
    assert refusal(out, source) == "'n\\xff' (changed since sapp wrote it)"


def test_an_earlier_output(tmp_path: Path, source: Path) -> None:
    """Names that sapp gives, weights by their hashes, unchanged copies of the source's files."""
    out = an_earlier_output(tmp_path / "out", "README.md", "sparsity.json", "bench.json", "config.json")
    (out / "README.source.md").write_text("README.md")
    check_ownership(out, source)
    write(out, "tokenizer.json", "README.source.md")
    (out / "model.safetensors").write_text("another")
    assert refusal(out, source) == (
        "tokenizer.json (not written by sapp) and README.source.md, model.safetensors (changed since sapp wrote them)"
    )


def test_one_key_of_a_manifest_does_not_make_a_folder_ours(tmp_path: Path, source: Path) -> None:
    out = write(tmp_path / "out", "src/thesis.tex")
    (out / MANIFEST).write_text('{"sapp_version": "0.1"}')
    assert refusal(out, source) == "src/ (not written by sapp)"


def test_a_damaged_list(out: Path, source: Path) -> None:
    (out / MANIFEST).write_text('{"sapp_version": "0.1", "files": {"a": {"bytes": 1}}}')
    with pytest.raises(CheckpointError, match="'files' does not give size and hash of every file"):
        check_ownership(out, source)


def test_what_sapp_writes_later_is_recorded(out: Path, source: Path) -> None:
    with recorded_anew(out, ["README.md", "bench.json", "sparsity.json"]):
        (out / "README.md").write_text("with a section")
        write(out, "bench.json")
    check_ownership(out, source)
    assert is_recorded(out / "bench.json")
    assert "sparsity.json" not in json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]


def test_what_somebody_changed_before_stays_theirs(out: Path, source: Path) -> None:
    (out / "README.md").write_text("mine")
    write(out, "report.html")
    with recorded_anew(out, ["README.md", "report.html", "other.html"]):
        (out / "README.md").write_text("mine, with a section")
        write(out, "report.html", "other.html")
    assert not is_recorded(out / "README.md")
    both = "other.html, report.html (not written by sapp) and README.md (changed since sapp wrote it)"
    assert refusal(out, source) == both


def test_an_earlier_output_stays_without_a_list(tmp_path: Path) -> None:
    out = an_earlier_output(tmp_path / "out", "README.md")
    before = (out / MANIFEST).read_bytes()
    with recorded_anew(out, ["README.md"]):
        (out / "README.md").write_text("more")
    assert (out / MANIFEST).read_bytes() == before
    assert is_recorded(out / "README.md")
    assert not is_recorded(out / "model.safetensors")
