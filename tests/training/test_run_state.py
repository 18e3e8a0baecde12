"""The run folder: what a killed process leaves, and what a state.json with something else in it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest
import torch

from sapp_cli.errors import CheckpointError
from sapp_cli.outputs.metrics_log import MetricsLog
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.run_record import StateRecord
from sapp_cli.training.run_state import RunFolder
from tests.training.crew import FORKS

RECORD = StateRecord(
    recipe=Recipe.model_validate({"train": {"steps": 10}, "optimizer": {"betas": [0.5, 0.75]}}),
    inputs={"net.safetensors": "00"},
    processes="1",
    dense={"accuracy": 0.5, "loss": float("inf")},
    costs={"multiply_adds": {"a": 1}, "blocks": {"a": 64}},
    seconds=2.5,
    log_bytes=7,
    kept_blocks=["a"],
)
TENSORS = {"model.a": torch.arange(4.0)}


def save(folder, step):
    folder.save(step, TENSORS, TENSORS, RECORD)


def test_a_record_comes_back_as_it_was(tmp_path):
    folder = RunFolder(tmp_path / "out")
    with folder.made():
        save(folder, 3)
        saved = folder.latest()
    assert (saved.step, saved.record) == (3, RECORD)


CHANGES = 5  # saved states, by the process below
CALLS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
"""What Python tells a hook before it calls the system to change a folder."""


def live(out, kill_at, notes):
    """A run's life on disk, killed before call number `kill_at` of CALLS; `notes` gets what it has done by then."""
    calls = 0

    def count(event, arguments):
        nonlocal calls
        calls += event in CALLS
        if event in CALLS and calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    folder = RunFolder(out)
    with folder.made(), notes.open("w", buffering=1) as done:
        for step in range(1, CHANGES + 1):
            save(folder, step)
            done.write(f"{step}\n")
        done.write("removing\n")
        folder.remove()
        done.write("removed\n")


def test_killed_before_any_call_it_has_its_last_state_or_is_gone(tmp_path):
    ends = []
    while -signal.SIGKILL in ends or not ends:
        out, notes = tmp_path / f"{len(ends)}" / "out", tmp_path / f"{len(ends)}.notes"
        out.parent.mkdir()
        process = FORKS.Process(target=live, args=(out, len(ends) + 1, notes))
        process.start()
        process.join(60)
        ends.append(process.exitcode)
        if process.exitcode == 0:
            break
        done = notes.read_text().splitlines() if notes.exists() else []
        saved = RunFolder(out).latest()
        step = saved.step if saved else 0
        if "removing" in done:
            assert step in (0, CHANGES)
        else:
            assert step - len(done) in (0, 1)  # a state may be whole before its process can say so
        assert saved is None or (saved.record, saved.tensors.array("model.a").tolist()) == (RECORD, [0, 1, 2, 3])
        # The next run clears up, saves, and leaves nothing.
        folder = RunFolder(out)
        with folder.made():
            save(folder, CHANGES + 1)
            assert [path.name for path in folder.path.iterdir()] == [f"step-{CHANGES + 1:09}"]
            folder.remove()
        assert list(out.parent.iterdir()) == []
    assert set(ends) == {0, -signal.SIGKILL}
    assert (
        len(ends) > 6 * CHANGES
    )  # for each state at least: made, written twice, put in its place, and the last one removed


REQUIRED = {"version", "recipe", "inputs", "processes", "dense"}
WRONG = [
    *((key, ...) for key in sorted(REQUIRED)),
    *((key, None) for key in sorted(RECORD.as_json())),
    *((key, "x") for key in sorted(RECORD.as_json()) if key != "processes"),
    *((key, []) for key in ("version", "recipe", "inputs", "processes", "dense", "costs", "seconds", "log_bytes")),
    ("processes", 1),
    ("inputs/net.safetensors", 0),
    ("dense/accuracy", "0.5"),
    ("dense/accuracy", None),
    ("costs/blocks", ["a"]),
    ("costs/blocks/a", 0.5),
    ("costs/multiply_adds/a", True),
    ("costs/more", 1),
    ("seconds", -1),
    ("seconds", float("nan")),
    ("log_bytes", 0.5),
    ("log_bytes", -1),
    ("kept_blocks", [1]),
    ("recipe/train", {}),
    ("recipe/train/steps", "many"),
    ("recipe/prune/method", "none"),
    ("more", 1),
]


def edited(content, path, value):
    """The content with another value at this path; without it if the value is `...`."""
    key, *below = path
    if below:
        return {**content, key: edited(content[key], below, value)}
    return {**{name: old for name, old in content.items() if name != key}, **({} if value is ... else {key: value})}


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda part: repr(part)[:30])
def test_a_value_of_another_kind_is_one_line_with_its_key(tmp_path, path, value):
    folder = RunFolder(tmp_path / "out")
    with folder.made():
        save(folder, 3)
    file = folder.path / "step-000000003" / "state.json"
    file.write_text(json.dumps(edited(RECORD.as_json(), path.split("/"), value)))
    with pytest.raises(CheckpointError) as caught:
        folder.latest()
    said = str(caught.value)
    assert re.fullmatch(rf"{re.escape(str(file))}: .*; remove {re.escape(str(folder.path))} to start anew", said), said
    assert path.split("/")[0] in said or path == "version"


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 300, '{"version": 2}'])
def test_a_file_of_something_else_is_one_line_too(tmp_path, content):
    folder = RunFolder(tmp_path / "out")
    with folder.made():
        save(folder, 3)
    (folder.path / "step-000000003" / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json: .*; remove .* to start anew$"):
        folder.latest()


@pytest.mark.parametrize(
    ("metrics", "layers", "said"),
    [(["accuracy"], ["a"], "'dense': not of this run ('loss')"), (["accuracy", "loss"], ["a", "b"], "'costs.blocks'")],
)
def test_a_record_of_other_metrics_or_layers_is_refused(tmp_path, metrics, layers, said):
    folder = RunFolder(tmp_path / "out")
    with folder.made():
        save(folder, 3)
        with pytest.raises(CheckpointError) as caught:
            folder.latest().require(metrics, layers)
        folder.latest().require(["loss", "accuracy"], ["a"])
    assert said in str(caught.value)


LINES = b'{"step": 0, "metrics": {}}\n{"step": 10, "loss": 1.0}\n{"step": 20, "loss": NaN}\n'
ENDS = [LINES.index(b"\n") + 1, LINES.index(b'{"step": 20'), len(LINES)]


@pytest.mark.parametrize(
    ("content", "expected", "kept", "lost_from"),
    [
        (LINES, ENDS[2], ENDS[2], None),
        (LINES, ENDS[1], ENDS[1], None),  # the run went on after its state was saved
        (LINES[:-5], ENDS[2], ENDS[1], 11),
        (LINES[: ENDS[1]], ENDS[2], ENDS[1], 11),
        (LINES[: ENDS[0]] + bytes(300), ENDS[2], ENDS[0], 1),  # as some file systems come back after a power failure
        (LINES, 10**15, ENDS[2], 21),
        (LINES[: ENDS[1]] + b'["step"]\n', ENDS[2], ENDS[1], 11),
        (b"", ENDS[2], 0, 0),
        (b"", 0, 0, None),
    ],
)
def test_a_log_keeps_its_whole_records_and_says_what_is_lost(tmp_path, content, expected, kept, lost_from):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with MetricsLog(path, 1, expected) as log:
        assert log.lost_from == lost_from
        log.evaluation(30, {})
    assert path.read_bytes() == content[:kept] + b'{"step": 30, "metrics": {}}\n'
