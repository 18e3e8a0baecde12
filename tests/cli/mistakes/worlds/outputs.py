"""Places that are taken, run states, and outputs that somebody changed."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import IO

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.inputs.fingerprints import fingerprint_checkpoint, fingerprint_code, fingerprint_files
from sapp_cli.recipe.load import load_recipe
from tests.cli.mistakes.setups import WORLDS, put, settings, world

# places
put("an output below a file", "file", "mine")


@world("an output that is there")
def _(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/model.safetensors").write_bytes(b"mine")


@world("a folder of somebody else's")
@world("a target and an output that is there")
def _(folder: Path) -> None:
    WORLDS["an output that is there"](folder)


@world("an output with something else in it")
def _(folder: Path) -> None:
    shutil.copytree(folder / "out", folder / "mine")
    (folder / "mine/notes.txt").write_text("weeks of work")
    (folder / "mine/README.md").write_text("my own words")


@world("a folder with one key of a manifest")
def _(folder: Path) -> None:
    (folder / "mine/src").mkdir(parents=True)
    (folder / "mine/src/thesis.tex").write_text("mine")
    (folder / "mine/manifest.json").write_text('{"sapp_version": null}')


@world("a list of files that is none")
def _(folder: Path) -> None:
    shutil.copytree(folder / "out", folder / "mine")
    (folder / "mine/manifest.json").write_text('{"sapp_version": "0.1", "files": []}')


put("a copy in the place of another file", "digits.py", "mine")
put("a measurement in the place of another file", "out/bench.json", '{"mine": 1}')
put("a table in the place of another file", "mine/comparison.csv", "mine")


@world("a table that was changed by hand")
def _(folder: Path) -> None:
    (folder / "mine" / "cells").mkdir(parents=True)
    (folder / "mine" / "comparison.md").write_text("mine")
    record = '{"comparison.md": {"bytes": 4, "sha256": "0"}}'
    (folder / "mine" / "cells" / "files.json").write_text(record)


@world("a page in the place of a link")
def _(folder: Path) -> None:
    (folder / "loop.html").symlink_to("loop.html")


put("a state of another version", ".result.sapp-run/step-000000010/state.json", '{"version": 99}')
put("a recipe that is there", "mine.yaml", "mine")
put("a shipped recipe that is there", "digits.yaml", "mine")

# outputs that were changed
put("a report that is none", "out/sparsity.json", '{"version": 1}')
put("a report without names", "out/sparsity.json", '{"layers": [{}]}')
put("a report with a wrong value", "out/sparsity.json", '{"layers": [{"name": "hidden1.weight", "pruned": "yes"}]}')
put("a log that is none", "out/metrics.jsonl", "[]\n")
put("a log without steps", "out/metrics.jsonl", "{}\n")
settings("a metric without numbers", "out/manifest.json", metrics={"accuracy": {"dense": "good"}})
settings("a phase without a name", "out/manifest.json", phases=[{}])
settings("a phase without a count", "out/manifest.json", phases=[{"phase": "dense", "round": -1}])
settings("phases that are no list", "out/manifest.json", phases={})
settings("metrics that are no object", "out/manifest.json", metrics=[])
settings("a manifest of files elsewhere", "out/manifest.json", outputs={"../x.safetensors": "0"})
put("a bench.json that is none", "out/bench.json", "{}")


@world("weights that were changed after the run")
def _(folder: Path) -> None:
    path = folder / "out/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data)


@world("an output that another run writes")
@world("an export into an output that another run writes")
def _(folder: Path) -> None:
    lock = (folder / ".result.sapp-lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write("4711 another-machine 2026-11-30 19:49:07\n")
    lock.flush()
    HELD.append(lock)  # to the end of this process


# run states
HELD: list[IO[str]] = []
RUN = {"version": 3, "recipe": {"train": {"steps": 10}}, "inputs": {}, "processes": "1", "dense": {}}
STATE = ".result.sapp-run/step-000000010/state.json"
put("an interrupted run in the way", STATE, json.dumps(RUN))
put("a state that is damaged", STATE, "{")
TRIALS = {**{key: RUN[key] for key in ("recipe", "inputs", "processes")}, "trials": [{"rate": 1e-3, "steps": 30}]}
put("trials of an interrupted search in the way", ".result.sapp-run/trials.json", json.dumps(TRIALS))
put("trials that are damaged", ".result.sapp-run/trials.json", json.dumps({**TRIALS, "trials": [{"rate": "1e-3"}]}))
put("a state that somebody changed", STATE, json.dumps({**RUN, "seconds": "x"}))


def _put_state(folder: Path, settings: list[str], **inputs: str) -> None:
    """Of a run of recipe.yaml with these settings; `inputs` are other hashes than those of the files that are there."""
    recipe = load_recipe(folder / "recipe.yaml", settings).recipe
    found = fingerprint_checkpoint(open_checkpoint(folder / "net.safetensors")) | fingerprint_files(recipe)
    found |= fingerprint_code(recipe)
    about = {**RUN, "recipe": recipe.model_dump(mode="json"), "inputs": {**found.values, **inputs}}
    (folder / STATE).parent.mkdir(parents=True)
    (folder / STATE).write_text(json.dumps(about))


@world("another run's state")
def _(folder: Path) -> None:
    """Of the same recipe with another sparsity, on another checkpoint."""
    _put_state(folder, ["prune.sparsity=0.8"], **{"net.safetensors": "0"})


@world("a state that lost its metrics")
def _(folder: Path) -> None:
    _put_state(folder, [])


put("a folder that is a file", "mine", "mine")


def _circle(folder: Path) -> None:
    (folder / "circle").symlink_to("circle")


world("an output in a circle of links")(_circle)
world("a checkpoint in a circle of links")(_circle)

put("weights of another model beside the file", "net.onnx.data", b"theirs")
