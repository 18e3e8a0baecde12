"""A disk that takes no more, a folder that takes nothing: exit code 5, what was there stays, and the run can go on later.

The disk is full where a limit on file sizes makes it so, for any user; where the system lets us mount one, it really is.
"""

import hashlib
import multiprocessing.forkserver  # noqa: F401 - an ordinary user could not import it from root's home
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from sapp_cli.errors import ResourceError
from sapp_cli.pipeline.prune import prune as prune_checkpoint
from sapp_cli.recipe.load import load_recipe

SETTINGS = ["train.save_steps=20", "train.evaluate_every=null", "train.log_every=1"]
NOBODY = 65534


class Watcher:
    """Lowers the size that files may have to `size`, when step `at` is done or when the output is written."""

    def __init__(self, size, at=None):
        self.size, self.at = size, at

    def say(self, text):
        if self.at is None and text.startswith("writing"):
            self.fill()

    def detail(self, text): ...

    def step(self, record):
        if record.moment.step + 1 == self.at:
            self.fill()

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def limit_restored():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def prune(digits, out, watcher, **options):
    recipe = load_recipe(str(digits / "recipe.yaml"), SETTINGS)
    with limit_restored():
        return prune_checkpoint(recipe, digits / "dense.safetensors", out, watcher, **options)


def command(digits, out):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "-o", out, *sets]


def weights(out):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.rglob("*.safetensors"))}


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    """An output of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("full") / "out"
    prune(digits, out, Watcher(1 << 40))
    return out


@pytest.mark.parametrize("size", [0, 100_000], ids=["no byte more", "some"])
def test_a_state_that_does_not_fit_leaves_the_last_one(sapp, digits, tmp_path, uninterrupted, size):
    out = tmp_path / "out"
    with pytest.raises(ResourceError, match=r"a file there may not become that large; raise the limit") as error:
        prune(digits, out, Watcher(size, at=25))
    assert error.value.exit_code == 5
    run = tmp_path / ".out.sapp-run"
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "step-000000020"]
    assert not out.exists()
    resumed = sapp(*command(digits, out), "--resume")
    assert resumed.code == 0, resumed.err
    assert "going on after step 20 of 60" in resumed.err
    assert weights(out) == weights(uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [0, 5_000, 600_000], ids=["at once", "in the small files", "in the weights"])
def test_an_output_that_does_not_fit_leaves_the_one_before(sapp, digits, tmp_path, uninterrupted, size):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    before = everything(out)
    with pytest.raises(ResourceError) as error:
        prune(digits, out, Watcher(size), overwrite=True)
    assert error.value.exit_code == 5
    assert everything(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.sapp-run", "out"]
    again = sapp(*command(digits, out), "--resume", "--overwrite")
    assert again.code == 0, again.err
    assert "going on after step" in again.err
    assert weights(out) == weights(uninterrupted)


def disks():
    """Ways to run a shell command on a disk of 3 MB of its own, those that this system allows; the last is always there."""
    mount = "mount -t tmpfs -o size=3m none {folder} && cd {folder} && "
    ways = []
    for name, prefix in (
        ("root", ["unshare", "--mount"]),
        ("user", ["unshare", "--user", "--map-root-user", "--mount"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            line = [*prefix, "sh", "-c", mount.format(folder=folder) + "true"]
            if shutil.which("unshare") and subprocess.run(line, capture_output=True, check=False).returncode == 0:
                ways.append(pytest.param(prefix, mount, id=f"a real disk, mounted as {name}"))
                break
    return ways or [pytest.param([], "cd {folder} && ulimit -f 2000 && ", id="a limit on file sizes")]


@pytest.mark.parametrize(("prefix", "enter"), disks())
def test_a_disk_that_fills_up_while_the_run_goes_on(digits, tmp_path, prefix, enter):
    # Enough for what is looked at beforehand, twice the checkpoint; not for a state with the optimizer's moments.
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "sapp_cli", *map(str, command(digits, "out"))])
    script = enter.format(folder=tmp_path) + f"{words}; echo code $?; ls -A"
    ran = subprocess.run([*prefix, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["code 5"], ran.stderr  # and nothing is left there
    assert "error: " in ran.stderr.splitlines()[-1]
    assert ran.stderr.splitlines()[-1].endswith(", or give another folder")


@contextmanager
def ordinary_user():
    """Root may write anywhere; then within it this process is nobody in particular."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder(sapp, digits, uninterrupted):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("dense.safetensors", "recipe.yaml", "digits.py"):
            shutil.copy(digits / part, folder)
            (folder / part).chmod(0o644)
        shutil.copytree(digits / "data", folder / "data")
        shutil.copytree(uninterrupted, folder / "shelf" / "out")
        (folder / "shelf").chmod(0o555)
        before = everything(folder / "shelf")
        for out, more in (("new", []), ("deeper/new", []), ("out", ["--overwrite"])):
            with ordinary_user():
                ran = sapp(*command(folder, folder / "shelf" / out), *more)
            assert ran.code == 5, ran.err
            assert ran.err.splitlines()[-1] == (
                f"error: {(folder / 'shelf' / out).parent}: no permission to write there; give another folder"
            )
        assert everything(folder / "shelf") == before
        (folder / "shelf").chmod(0o755)
