"""The output folder: whole or not at all, and never in the place of something that is not sapp's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sapp_cli.checkpoint.lock import locked
from sapp_cli.checkpoint.output import MANIFEST, is_output, write_json
from sapp_cli.checkpoint.output_folder import output_folder, prepare_output
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.errors import ResourceError, UsageError
from tests.checkpoint.outputs import an_earlier_output, an_output, content, fill, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", "config.json")


def names(folder: Path) -> list[str]:
    """Of all that lies there, hidden or not."""
    return sorted(entry.name for entry in folder.iterdir())


def test_it_appears_when_the_block_ends(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "new" / "out"
    with output_folder(out, source) as staged:
        assert staged.parent.parent == out.parent
        assert staged.parent.name.startswith(".out.sapp-new-")
        fill(staged, "a", "sub/b")
        assert not out.exists()
    assert content(out) == {"a": "a", "sub/b": "sub/b"}
    assert names(out.parent) == ["out"]


def test_it_vanishes_when_the_block_raises(tmp_path: Path, source: Path) -> None:
    def interrupted() -> None:
        with output_folder(tmp_path / "out", source) as staged:
            write(staged, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["source"]


def test_a_full_disk_is_told_of_the_folder_that_the_user_named(tmp_path: Path, source: Path) -> None:
    def run() -> None:
        with output_folder(tmp_path / "out", source) as staged:
            (staged / ".a.sapp-new-1").symlink_to("/dev/full")
            with disk_errors(staged), (staged / ".a.sapp-new-1").open("wb", buffering=0) as file:
                file.write(b"a")

    with pytest.raises(ResourceError) as caught:
        run()
    assert str(caught.value) == f"{tmp_path / 'out'}: the disk is full; free some space, or give another folder"
    assert names(tmp_path) == ["source"]


def test_an_empty_folder_is_taken(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    assert content(an_output(tmp_path / "out", source, "a")) == {"a": "a"}


def test_overwriting_an_output(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out", source, "model.safetensors", "sub/b")
    with output_folder(out, source, overwrite=True) as staged:
        fill(staged, "a")
        assert (out / "model.safetensors").exists()
    assert content(out) == {"a": "a"}
    assert names(tmp_path) == ["out", "source"]


def test_a_failed_overwrite_leaves_the_old_output(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out", source, "model.safetensors")
    before = content(out)

    def fails() -> None:
        with output_folder(out, source, overwrite=True) as staged:
            fill(staged, "a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert content(out) == before
    assert names(tmp_path) == ["out", "source"]


def test_a_killed_run_leaves_the_old_output_and_the_next_one_removes_what_it_left(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out", source, "model.safetensors")
    before = content(out)
    program = f"""
import os, signal
from pathlib import Path
from sapp_cli.checkpoint.output_folder import output_folder
with output_folder(Path({str(out)!r}), Path({str(source)!r}), overwrite=True) as staged:
    (staged / "a").write_text("a")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert content(out) == before
    assert len(names(tmp_path)) == 4  # its lock and its workspace
    said: list[str] = []
    with locked(out):
        prepare_output(out, source, overwrite=True, say=said.append)
    assert names(tmp_path) == ["out", "source"]
    assert said == []


def refusal(out: Path, checkpoint: Path, overwrite: bool = False) -> str:
    with pytest.raises(UsageError) as caught, output_folder(out, checkpoint, overwrite):
        pass
    return str(caught.value).removeprefix(f"{out.resolve()}: ")


def test_what_is_not_overwritten(tmp_path: Path, source: Path) -> None:
    other = write(tmp_path / "other", "thesis.tex")
    message = "exists already; give another folder with -o, or --overwrite to replace it"
    assert refusal(other, source) == refusal(an_earlier_output(tmp_path / "out"), source) == message
    message = f"--overwrite replaces only outputs of sapp, and this has no {MANIFEST} of sapp in it"
    assert refusal(other, source, overwrite=True) == message
    for text in ("{}", "[1]", "no json", '{"sapp": 1}', '{"sapp_version": null}'):
        (other / MANIFEST).write_text(text)
        assert not is_output(other)
        assert refusal(other, source, overwrite=True) == message
    assert refusal(other / "thesis.tex", source, overwrite=True) == "is a file; give a folder with -o"
    assert content(other)["thesis.tex"] == "thesis.tex"


def test_what_came_into_the_output_during_the_run_is_not_removed(tmp_path: Path, source: Path) -> None:
    out = an_output(tmp_path / "out", source, "a")

    def run() -> None:
        with output_folder(out, source, overwrite=True) as staged:
            fill(staged, "b")
            write(out, "notes.txt")

    with pytest.raises(UsageError, match=r"--overwrite would remove notes\.txt \(not written by sapp\)"):
        run()
    assert content(out) == {"a": "a", "notes.txt": "notes.txt"}
    assert names(tmp_path) == ["out", "source"]


def test_an_output_that_another_run_made_meanwhile_is_not_replaced_unasked(tmp_path: Path, source: Path) -> None:
    def run() -> None:
        with output_folder(tmp_path / "out", source) as staged:
            fill(staged, "b")
            fill(tmp_path / "out", "a")

    with pytest.raises(UsageError, match="exists already"):
        run()
    assert content(tmp_path / "out") == {"a": "a"}


def test_the_output_and_the_checkpoint_are_apart(tmp_path: Path, source: Path) -> None:
    an_earlier_output(source)
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link", source / ".." / "source"):
        message = "the output is the checkpoint itself; give another folder with -o"
        assert refusal(out, source, overwrite=True) == message
    message = "the output lies inside the checkpoint's folder; give another folder with -o"
    assert refusal(source / "out", source) == refusal(tmp_path / "link" / "a" / "b", source) == message
    write_json(tmp_path / MANIFEST, {"sapp_version": "0.1"})
    message = "the checkpoint lies inside the output's folder; give another folder with -o"
    assert refusal(tmp_path, source, overwrite=True) == message
    assert refusal(source, source / "config.json", overwrite=True) == message


def test_beside_a_checkpoint_that_is_one_file(source: Path) -> None:
    assert content(an_output(source / "out", source / "config.json", "a")) == {"a": "a"}


def test_an_output_below_a_file(tmp_path: Path, source: Path) -> None:
    write(tmp_path, "file")
    out = tmp_path / "file" / "deep" / "out"
    with pytest.raises(UsageError) as caught, output_folder(out, source):
        pass
    assert str(caught.value) == (
        f"{out}: {tmp_path / 'file'} is a file, so nothing can lie in it; give another folder with -o"
    )
