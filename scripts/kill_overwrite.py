"""Kills a command that overwrites OUT at every call that makes, moves or removes a name, and looks at what is left.

    python scripts/kill_overwrite.py                     # sapp prune --overwrite
    python scripts/kill_overwrite.py --verb export       # sapp export --overwrite

Each run is a process of its own that ends by SIGKILL just before one such call in OUT's folder. Nothing else changes names, so
that is what a kill right after the call before leaves, too. After each kill OUT must be whole, the old or the new output;
where the system cannot exchange two folders, it may be missing instead, and then the next run must put it back. After one more
run OUT must be the new output, `sapp check` must pass, and nothing else may lie beside it. Both ways are tried: the exchange,
and the two renames of a system without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import save_file

from sapp_cli.checkpoint import exchange
from sapp_cli.checkpoint.output import MANIFEST, sha256_file

CALLS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir"})
"""Audit events; an exchange of two folders is an os.rename."""
NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
"""
RECIPE = """
model: {factory: net.py:net}
data: {source: tensors, files: {train: rows.npz, validation: rows.npz}, batch_size: 16}
train: {steps: 20, evaluate_every: null}
prune: {block_size: 4, sparsity: 0.5, min_blocks: 4, method: magnitude}
"""
Job: TypeAlias = Callable[[], Any]
"""Overwrites OUT; runs in a process of its own."""


@dataclass(frozen=True)
class Scene:
    """A folder with OUT and what a job reads, nothing else in it."""

    folder: Path
    job: Job
    check: Job  # raises, or ends with another code than 0, if OUT is not sound

    @property
    def out(self) -> Path:
        return self.folder / "out"


def kill_everywhere(scene: Scene, *, exchanges: bool) -> int:
    """The number of places at which the job was killed. Raises AssertionError for what is not as it must be.

    `exchanges`: False for a system that cannot exchange two folders.
    """
    old = scene.folder.parent / "old"
    shutil.copytree(scene.out, old)
    beside = _names(scene.folder)
    number = 0
    while True:
        shutil.rmtree(scene.out)
        shutil.copytree(old, scene.out)
        code = _run(scene.job, scene.folder, exchanges, number)
        if code == 0:
            break
        place = f"call {number}, {'exchange' if exchanges else 'two renames'}"
        assert code == -signal.SIGKILL, f"{place}: exit code {code}"
        assert scene.out.exists() or not exchanges, f"{place}: OUT is missing"
        if scene.out.exists():
            assert _is_whole(scene.out), f"{place}: OUT is not whole"
        code = _run(scene.job, scene.folder, exchanges, None)
        assert code == 0, f"{place}: exit code {code} of the next run"
        assert _is_whole(scene.out), f"{place}: OUT is not whole after the next run"
        assert _names(scene.folder) == beside, f"{place}: {_names(scene.folder) - beside} is left behind"
        assert _run(scene.check, scene.folder, exchanges, None) == 0, f"{place}: OUT is not sound after the next run"
        number += 1
    shutil.rmtree(old)
    return number


def _run(job: Job, folder: Path, exchanges: bool, kill_at: int | None) -> int:
    """The exit code of the job in a process of its own, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if not exchanges:
                exchange.swap_function = lambda: None  # type: ignore[assignment]
            if kill_at is not None:
                _kill_before(kill_at, folder)
            code = job() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _kill_before(number: int, folder: Path) -> None:
    """Let this process be killed before the call of this number, from 0, that changes a name in the folder."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CALLS and _is_below(folder, arguments):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def _is_below(folder: Path, arguments: Sequence[Any]) -> bool:
    """A name in the folder, or one in an open folder, as shutil.rmtree has it."""
    path, handle = os.fspath(arguments[0]), arguments[-1]
    relative = isinstance(handle, int) and handle >= 0 and len(arguments) < 4
    return relative or os.fsdecode(path).startswith(f"{folder}{os.sep}")


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.name != "__pycache__"}


def _is_whole(out: Path) -> bool:
    """Every file that the manifest lists is there and as it was written, and no other file."""
    listed = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return there == {MANIFEST, *listed} and all(
        sha256_file(out / name) == about["sha256"] for name, about in listed.items()
    )


def _command(*words: str | Path) -> Job:
    """`sapp` with these arguments, its output thrown away."""

    def job() -> None:
        from sapp_cli.cli.main import main

        sys.argv = ["sapp", *map(str, words)]
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  the process ends with it
        main()

    return job


def _scene(folder: Path, verb: str) -> Scene:
    """A small network, its data and an output of it."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (4, 32), "2.bias": (4,)}
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["0.weight"][:16] = 0  # so that an export has blocks to leave out
    save_file(weights, folder / "net.safetensors")
    inputs = generator.normal(size=(64, 16)).astype(np.float32)
    np.savez(folder / "rows.npz", inputs=inputs, targets=generator.integers(0, 4, 64))
    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    words: list[str | Path] = ["prune", folder / "net.safetensors", "-r", folder / "recipe.yaml", "-q"]
    if verb == "export":
        words = ["export", folder / "net.safetensors", "--layout", "both", "--block-size", "4", "-q"]
    job = _command(*words, "-o", folder / "out", "--overwrite")
    assert _run(job, folder, True, None) == 0, "the command fails by itself"
    return Scene(folder, job, _command("check", folder / "out"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a command that overwrites OUT at every call that changes a name")
    parser.add_argument("--verb", choices=("prune", "export"), default="prune")
    verb = parser.parse_args().verb
    import torch

    import sapp_cli.exporting
    import sapp_cli.pipeline.prune  # noqa: F401  imported once, for all the processes

    torch.set_num_threads(1)
    for exchanges, way in ((True, "exchange"), (False, "two renames")):
        with tempfile.TemporaryDirectory() as folder:
            count = kill_everywhere(_scene(Path(folder).resolve() / "scene", verb), exchanges=exchanges)
        print(f"{verb} --overwrite, {way}: killed at {count} calls; OUT was whole, and nothing was left behind")


if __name__ == "__main__":
    main()
