"""What a killed run leaves beside OUT: removed if the run is dead, left alone if it lives, put back if OUT lacks it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sapp_cli.checkpoint import exchange, workspace
from sapp_cli.checkpoint.lock import locked
from sapp_cli.checkpoint.workspace import put_in_place
from tests.checkpoint.outputs import an_output, content, fill, write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def left(tmp_path: Path, *names: str) -> Path:
    """A dead run's workspace with these files in it."""
    return write(tmp_path / ".out.sapp-new-12345678", *names)


def recover(out: Path) -> list[str]:
    """What the next run does."""
    with locked(out):
        return workspace.recover(out)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def no_exchange(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A system that answers the exchange of two folders with this errno."""

    def refuses(one: bytes, other: bytes) -> int:
        exchange.ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(exchange, "swap_function", lambda: refuses)


def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", "a"), write(tmp_path / "other", "b")
    assert exchange.exchange(one, other)
    assert (content(one), content(other)) == ({"b": "b"}, {"a": "a"})
    with pytest.raises(FileNotFoundError):
        exchange.exchange(one, tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="the call by its number is Linux's")
def test_the_call_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:  # a libc that does not name renameat2
        def __init__(self) -> None:
            self.syscall = exchange.ctypes.CDLL(None, use_errno=True).syscall

    library = Library()
    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: library)
    swap = exchange.swap_function.__wrapped__()
    one, other = write(tmp_path / "one", "a"), write(tmp_path / "other", "b")
    assert swap is not None
    assert swap(os.fsencode(one), os.fsencode(other)) == 0
    assert (content(one), content(other)) == ({"b": "b"}, {"a": "a"})


@pytest.mark.parametrize("number", sorted(exchange.NOT_OFFERED))
def test_without_an_exchange_there_are_two_renames(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    no_exchange(monkeypatch, number)
    source = write(tmp_path / "source", "config.json")
    an_output(out, source, "a")
    assert content(an_output(out, source, "b", overwrite=True)) == {"b": "b"}
    assert names(tmp_path) == ["out", "source"]


def test_an_exchange_that_fails_leaves_what_was_there(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exchange(monkeypatch, errno.EIO)
    write(out, "a")

    def run() -> None:
        with workspace.workspace(out) as folder:
            fill(folder / "out", "b")
            put_in_place(folder, out)

    with pytest.raises(OSError, match="Input/output error"):
        run()
    assert content(out) == {"a": "a"}
    assert names(tmp_path) == ["out"]


def test_the_second_of_two_renames_that_fails(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_exchange(monkeypatch, errno.ENOSYS)
    write(out, "a")

    def run() -> None:
        with workspace.workspace(out) as folder:
            (folder / "out").rmdir()
            put_in_place(folder, out)

    with pytest.raises(FileNotFoundError):
        run()
    assert content(out) == {"a": "a"}
    assert names(tmp_path) == ["out"]


def test_what_a_dead_run_left_is_removed(tmp_path: Path, out: Path) -> None:
    write(out, "a")
    left(tmp_path, "out/model.safetensors", "replaced/model.safetensors")
    (tmp_path / ".out.sapp-new-abcdefgh").mkdir()
    write(tmp_path / ".other.sapp-new-12345678", "out/a")
    assert recover(out) == []
    assert names(tmp_path) == [".other.sapp-new-12345678", "out"]
    assert content(out) == {"a": "a"}


def test_what_is_not_ours_stays(tmp_path: Path, out: Path) -> None:
    """A folder that an earlier version named after its process, whatever somebody put into ours, and links."""
    write(tmp_path / ".out.sapp-new-123", "model.safetensors")
    folder = left(tmp_path, "out/a", "notes.txt")
    (tmp_path / ".out.sapp-new-linklink").symlink_to(tmp_path)
    assert recover(out) == []
    assert names(tmp_path) == [".out.sapp-new-123", folder.name, ".out.sapp-new-linklink"]
    assert content(folder) == {"notes.txt": "notes.txt", "out/a": "out/a"}


def test_without_the_lock_nothing_is_touched(tmp_path: Path, out: Path) -> None:
    """Another process holds it until it is killed."""
    program = f"""
from pathlib import Path
from sapp_cli.checkpoint.lock import locked
from sapp_cli.checkpoint.workspace import workspace
out = Path({str(out)!r})
with locked(out), workspace(out) as folder:
    (folder / "out" / "a").write_text("a")
    print(folder, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        assert workspace.recover(out) == []
        assert content(folder) == {"out/a": "a"}
        run.kill()
        run.wait()
        assert workspace.recover(out) == []
        assert folder.exists()
        assert recover(out) == []
        assert names(tmp_path) == []


@pytest.mark.parametrize("empty", [False, True])
def test_what_stood_at_out_is_put_back(tmp_path: Path, out: Path, empty: bool) -> None:
    left(tmp_path, "old/model.safetensors", "out/model.safetensors")
    if empty:
        out.mkdir()
    assert recover(out) == [f"{out}: put back as it was; a run was killed while it replaced this output"]
    assert content(out) == {"model.safetensors": "old/model.safetensors"}
    assert names(tmp_path) == ["out"]


def test_what_stood_at_out_is_removed_once_the_new_output_is_there(tmp_path: Path, out: Path) -> None:
    write(out, "new")
    left(tmp_path, "old/model.safetensors")
    assert recover(out) == []
    assert content(out) == {"new": "new"}
    assert names(tmp_path) == ["out"]


def test_what_stood_at_out_is_not_lost_to_something_else(tmp_path: Path, out: Path) -> None:
    write(out, "mine")
    folder = left(tmp_path, "old/model.safetensors", "out/model.safetensors")
    assert recover(out) == [
        f"{folder / 'old'}: stood at {out} until a run was killed while it replaced it; "
        f"move it away, or remove {folder}"
    ]
    assert (folder / "old" / "model.safetensors").exists()
    assert content(out) == {"mine": "mine"}
