"""An overwrite that is killed at any call that changes a name: OUT stays whole, and the next run leaves nothing behind.

The commands themselves take minutes: `make kill`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sapp_cli.checkpoint.output import MANIFEST, MARKER
from sapp_cli.checkpoint.output_folder import output_folder
from scripts.kill_overwrite import Scene, kill_everywhere

FILES = ("model.safetensors", "sparse/model.safetensors", "README.md")


def scene(folder: Path) -> Scene:
    """An output of three files, and a job that writes it anew."""
    (folder / "source").mkdir(parents=True)

    def job() -> None:
        with output_folder(folder / "out", folder / "source", overwrite=True) as staged:
            (staged / "sparse").mkdir()
            for name in FILES:
                (staged / name).write_text(name, encoding="utf-8")
            (staged / MANIFEST).write_text(json.dumps({MARKER: "0.1", "outputs": {}}), encoding="utf-8")

    job()
    return Scene(folder, job, check=lambda: None)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_call(tmp_path: Path, exchanges: bool) -> None:
    # The workspace and its folder, `sparse`, the manifest, the exchange or two renames, four files, three folders, the lock.
    assert kill_everywhere(scene(tmp_path / "scene"), exchanges=exchanges) >= 12


def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    """A job as it once was: it moves OUT aside, and then the new output into its place."""
    found = scene(tmp_path / "scene")
    aside, new = found.folder / ".out.old", found.folder / ".out.new"

    def job() -> None:
        shutil.copytree(found.out, new)
        found.out.rename(aside)
        new.rename(found.out)
        shutil.rmtree(aside)

    with pytest.raises(AssertionError, match=r"exit code 1 of the next run|OUT is missing"):
        kill_everywhere(Scene(found.folder, job, found.check), exchanges=True)
