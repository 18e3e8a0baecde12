"""One process at a time writes an output: real processes, and what they leave when they are killed."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from sapp_cli.checkpoint.lock import locked
from sapp_cli.errors import ResourceError, UsageError

HOLDING = """
import sys, time
from pathlib import Path
from sapp_cli.checkpoint.lock import locked
with locked(Path(sys.argv[1])):
    {inside}
    print("locked", flush=True)
    time.sleep(60)
"""


def holding(out, inside="pass"):
    """A process that holds the lock of `out` until it is killed."""
    command = [sys.executable, "-c", HOLDING.format(inside=inside), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_another_process_is_refused_with_the_first_one_s_number_and_time(out):
    with holding(out) as process:
        with pytest.raises(UsageError) as refused, locked(out):
            pass
        process.kill()
    assert re.fullmatch(
        rf"{re.escape(str(out))}: another run is writing there: process {process.pid} since \d{{4}}-\d\d-\d\d "
        r"\d\d:\d\d:\d\d; wait for it or stop it, or give another folder with -o",
        str(refused.value),
    )


def test_one_folder_under_two_names_has_one_lock(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    with holding(tmp_path / "real" / "out") as process:
        with pytest.raises(UsageError, match="another run"), locked(tmp_path / "name" / "out"):
            pass
        with locked(tmp_path / "real" / "other"):
            pass
        process.kill()


def test_a_killed_process_locks_nothing_and_the_next_one_clears_up(out):
    with holding(out) as process:
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in out.parent.iterdir()] == [".out.sapp-lock"]
    with locked(out):
        assert (out.parent / ".out.sapp-lock").read_text().split(" ")[0] == str(os.getpid())
    assert list(out.parent.iterdir()) == []


FORKING = """
    import os
    read, write = os.pipe()
    forked = os.fork()
    if forked == 0:
        os.write(write, b".")
        time.sleep(60)
    os.read(read, 1)  # it runs
    print(forked)
"""


def test_a_fork_does_not_keep_the_lock_of_its_parent(out):
    """As a worker that loads data is one: it lives on for seconds after the run was killed."""
    command = [sys.executable, "-c", HOLDING.format(inside=FORKING.strip()), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        forked = int(process.stdout.readline())
        assert process.stdout.readline() == "locked\n"
        process.kill()
        process.wait()
        with locked(out):
            os.kill(forked, signal.SIGKILL)  # fails if it is not there any more


def test_folders_above_are_made_and_only_those_are_removed(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with suppress(KeyError), locked(out):
        assert out.parent.is_dir()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(out):
        (out.parent / "something").mkdir()
    assert (out.parent / "something").is_dir()
    assert [path.name for path in out.parent.iterdir()] == ["something"]


def test_the_same_process_may_ask_again(out):
    with locked(out):
        with locked(out):
            pass
        assert (out.parent / ".out.sapp-lock").is_file()
    assert list(out.parent.iterdir()) == []


def test_a_lock_file_of_nonsense_names_nobody(out):
    with holding(out, r"Path(sys.argv[1]).with_name('.out.sapp-lock').write_bytes(b'\x1b[2J' * 400)") as process:
        with pytest.raises(UsageError, match="another run is writing there; wait"), locked(out):
            pass
        process.kill()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_a_warning(out, monkeypatch, number):
    def fail(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    said = []
    with locked(out, said.append):
        pass
    assert said == [f"warning: {out.parent}: the disk has no locks; do not start a second run into out"]
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError), locked(tmp_path / "file" / "out"):
        pass
