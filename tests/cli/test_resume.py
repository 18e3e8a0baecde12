"""An interrupted run goes on and ends with the same bytes as one that was left alone."""

import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sapp_cli.errors import Interrupted, UsageError
from sapp_cli.pipeline.prune import prune
from sapp_cli.recipe.load import load_recipe
from sapp_cli.training import keeper
from sapp_cli.training.run_state import RunFolder
from tests.runs import Interrupting, Running, hashes, losses, write_job

NETWORK = """
from torch import nn

def net():
    # Dropout draws random numbers in every step, batch norm gathers statistics: both must go on where they were.
    return nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )
"""
RECIPE = """
model: {factory: net.py:net}
data: {source: tensors, files: {train: DATA/train.npz, validation: DATA/validation.npz}, batch_size: 32}
objective: {distill: {weight: 0.5}}
optimizer: {lr: 2e-3, weight_decay: 0.1}
train: {steps: 80, log_every: 1, save_steps: 5, evaluate_every: 20, accumulate: 2}
prune: {block_size: 8, sparsity: 0.7, min_blocks: 20, phases: paper}
"""


@pytest.fixture(scope="module")
def job(digits, tmp_path_factory):
    """A folder with checkpoint and recipe."""
    return write_job(tmp_path_factory.mktemp("resume"), digits, NETWORK, "net", RECIPE)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the runs of other processes have it: sums in another order are other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(job, out, *more):
    return ["prune", str(job / "net.safetensors"), "-r", str(job / "recipe.yaml"), "-o", str(out), *more]


@pytest.fixture(scope="module")
def undisturbed(job):
    """OUT of a run as users start it."""
    out = job / "undisturbed"
    whole = [sys.executable, "-m", "sapp_cli", *command(job, out)]
    ran = subprocess.run(whole, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_resume_goes_on(sapp, job, undisturbed, number, code):
    out = job / f"signal-{number}"
    running = Running(job / "said.log", *command(job, out))
    running.wait_for("step 32/80")
    running.send(number)
    found, said = running.finish()
    assert found == code
    last = said.splitlines()[-1]
    assert last.startswith("sapp: interrupted after step ")
    assert last.endswith(" of 80; the state is saved, the same command with --resume goes on")
    assert not out.exists()
    assert (job / f".{out.name}.sapp-run").is_dir()
    ran = sapp(*command(job, out, "--resume"))
    assert ran.code == 0, ran.err
    step = last.split("after step ")[1].split(" ")[0]
    assert f"going on after step {step} of 80" in ran.err.splitlines()
    assert hashes(out) == hashes(undisturbed)
    assert losses(out) == losses(undisturbed)
    assert not (job / f".{out.name}.sapp-run").exists()


def test_a_terminal_that_goes_away_is_as_good_as_a_signal(sapp, job, undisturbed):
    """The window is closed, the connection breaks: SIGHUP, and whatever is written from then on fails."""
    out = job / "hung-up"
    child, terminal = pty.fork()
    if not child:
        words = [sys.executable, "-m", "sapp_cli", *command(job, out)]
        os.execve(words[0], words, {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"})
    said = b""
    while b"sparsification" not in said:
        said += os.read(terminal, 10_000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert [path.name for path in job.glob("*hung-up*")] == [".hung-up.sapp-run"]
    ran = sapp(*command(job, out, "--resume"))
    assert ran.code == 0, ran.err
    assert "going on after step " in ran.err
    assert hashes(out) == hashes(undisturbed)


def test_killed_again_and_again_it_ends_with_the_same_bytes(sapp, job, undisturbed):
    out = job / "killed"
    moments = random.Random(7)
    progress = []
    for _ in range(6):
        running = Running(job / "said.log", *command(job, out, "--resume", "--set", "train.save_steps=1"))
        running.wait_for("step ", "going on")
        time.sleep(moments.uniform(0, 0.15))  # in a step, or in the middle of writing a state
        running.send(signal.SIGKILL)
        assert running.finish()[0] == -signal.SIGKILL
        states = sorted(path.name for path in (job / ".killed.sapp-run").glob("step-*"))
        progress.append(states[-1] if states else "step-000000000")
    assert progress == sorted(progress)
    ran = sapp(*command(job, out, "--resume"))
    assert ran.code == 0, ran.err
    assert hashes(out) == hashes(undisturbed)
    assert losses(out) == losses(undisturbed)


def killed(*_):
    raise SystemExit(137)


def test_a_run_that_was_killed_when_its_output_was_there_has_nothing_left_to_do(sapp, job, monkeypatch):
    out = job / "there"
    folder = job / ".there.sapp-run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remove", killed)
        assert sapp(*command(job, out)).code == 137
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    states = sorted(folder.iterdir())
    assert any(state.name.startswith("step-") for state in states)
    for other in (["--resume", "--sparsity", "0.8"], []):  # another run, and one that does not ask
        ran = sapp(*command(job, out, *other))
        assert (ran.code, sorted(folder.iterdir())) == (2, states)
        assert f"{out}: exists already" in ran.err
    log = (out / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(log[:-1])  # a run that has not come to its end
    assert sapp(*command(job, out, "--resume")).code == 2
    (folder / "metrics.jsonl").write_bytes(log)
    ran = sapp(*command(job, out, "--resume", "--json"))
    assert ran.code == 0, ran.err
    assert ran.err.splitlines() == [
        f"{out}: is the finished output of the interrupted run, whose state is removed; nothing is left to do"
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert ran.json["metrics"] == manifest["metrics"]
    recorded = json.loads((out / "sparsity.json").read_text())
    assert {layer["name"]: layer["kept_blocks"] for layer in ran.json["layers"]} == {
        layer["name"]: layer["kept_blocks"] for layer in recorded["layers"]
    }
    assert not folder.exists()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert sapp(*command(job, out, "--resume")).code == 2  # now it is an output like any other


@pytest.fixture
def interrupted(job):
    """OUT of a run that stopped after a few steps."""
    out = job / "stopped"
    with pytest.raises(Interrupted):
        prune(load_recipe(job / "recipe.yaml"), job / "net.safetensors", out, Interrupting(12), overwrite=True)
    return out


def test_what_changed_since_is_shown_and_nothing_is_lost(sapp, job, interrupted):
    folder = job / ".stopped.sapp-run"
    states = sorted(folder.iterdir())
    ran = sapp(*command(job, interrupted, "--resume", "--sparsity", "0.8", "--set", "train.log_every=3"))
    assert ran.code == 2
    assert ran.err.splitlines()[-2:] == [
        f"error: {folder}: cannot go on with the interrupted run, for this changed since; change it back, or start anew with "
        "--overwrite:",
        "  prune.sparsity: 0.7 then, 0.8 now",
    ]
    ran = sapp(*command(job, interrupted))
    assert ran.code == 2
    assert "steps done; --resume goes on with it, --overwrite starts anew" in ran.err.splitlines()[-1]
    assert sorted(folder.iterdir()) == states


@pytest.fixture
def own_job(digits, tmp_path):
    """A folder of its own with everything that a run reads, and a run in it that stopped after 12 steps."""
    job = tmp_path / "job"
    shutil.copytree(digits / "data", job / "data")
    (job / "width.py").write_text("WIDTH = 96\n")
    write_job(job, digits, NETWORK, "net", RECIPE.replace("DATA", "data"))
    text = NETWORK.replace("nn.Linear(96, 10)", "nn.Linear(WIDTH, 10)").replace(
        "nn\n", "nn\nfrom width import WIDTH\n", 1
    )
    (job / "net.py").write_text(text)
    with pytest.raises(Interrupted):
        prune(load_recipe(job / "recipe.yaml"), job / "net.safetensors", job / "out", Interrupting(12))
    return job


def other_rows(path):
    arrays = dict(np.load(path))
    arrays["inputs"][0, 0] = 9
    np.savez(path, **arrays)


def other_text(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


CHANGES = {
    "data/train.npz": (other_rows, "data.files.train/train.npz"),
    "data/validation.npz": (other_rows, "data.files.validation/validation.npz"),
    "net.py": (other_text("Dropout(0.2)", "Dropout(0.5)"), "model.factory/net.py"),
    "width.py": (other_text("WIDTH = 96", "WIDTH = 96  # as before"), "model.factory/width.py"),
    "net.safetensors": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), "net.safetensors"),
}


def test_another_file_is_refused_wherever_the_run_reads_it(sapp, own_job):
    """Each by itself; with all as they were the run is resumed."""
    states = sorted((own_job / ".out.sapp-run").iterdir())
    for file, (change, name) in CHANGES.items():
        before = (own_job / file).read_bytes()
        change(own_job / file)
        ran = sapp(*command(own_job, own_job / "out", "--resume"))
        assert (ran.code, ran.err.splitlines()[-1]) == (2, f"  {name}: changed since the run began")
        (own_job / file).write_bytes(before)
    (own_job / "dropped").mkdir()
    (own_job / "width.py").rename(own_job / "dropped" / "width.py")
    ran = sapp(*command(own_job, own_job / "out", "--resume"))
    assert ran.err.splitlines()[-1] == "  model.factory/width.py: a file that the run began with, and is gone"
    (own_job / "dropped" / "width.py").rename(own_job / "width.py")
    assert sorted((own_job / ".out.sapp-run").iterdir()) == states


def test_a_job_that_moved_is_resumed_to_the_same_bytes(sapp, own_job, undisturbed):
    moved = own_job.rename(own_job.with_name("moved"))
    ran = sapp(*command(moved, moved / "out", "--resume"))
    assert ran.code == 0, ran.err
    assert "going on after step 13 of 80" in ran.err.splitlines()
    assert hashes(moved / "out") == hashes(undisturbed)
    inputs = json.loads((moved / "out" / "manifest.json").read_text())["inputs"]
    assert inputs == {
        name: hashlib.sha256((moved / file).read_bytes()).hexdigest() for file, (_, name) in CHANGES.items()
    }


def test_a_log_that_was_cut_loses_the_records_of_some_steps_and_nothing_else(sapp, own_job, undisturbed):
    log = own_job / ".out.sapp-run" / "metrics.jsonl"
    os.truncate(log, log.read_bytes().index(b'{"step": 5') + 3)
    ran = sapp(*command(own_job, own_job / "out", "--resume"))
    assert ran.code == 0, ran.err
    lost = "shorter or other than when the state was saved; the records of steps 5 to 13 are lost"
    assert f"warning: {log}: {lost}" in ran.err.splitlines()
    assert hashes(own_job / "out") == hashes(undisturbed)
    kept = losses(undisturbed)
    assert losses(own_job / "out") == [record for record in kept if not 5 <= record[0] <= 13]


def test_a_second_run_into_one_out_ends_at_once(sapp, job, undisturbed):
    """It says who is there, and changes nothing of the first."""
    out = job / "twice"
    running = Running(job / "said.log", *command(job, out))
    running.wait_for("step 8/80")
    for more in ([], ["--overwrite"], ["--resume"]):
        ran = sapp(*command(job, out, *more))
        assert ran.code == 2
        assert re.fullmatch(
            rf"error: {out}: another run is writing there: process \d+ since \S+ \S+; wait for it or stop it, or give "
            "another folder with -o\n",
            ran.err,
        )
    assert running.finish()[0] == 0
    assert losses(out) == losses(undisturbed)
    assert hashes(out) == hashes(undisturbed)
    assert sorted(path.name for path in job.glob(".twice*")) == []


def test_a_damaged_state_says_so(sapp, job, interrupted):
    folder = job / ".stopped.sapp-run"
    state = next(folder.glob("step-*")) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    ran = sapp(*command(job, interrupted, "--resume"))
    assert ran.code == 4
    assert str(state) in ran.err.splitlines()[-1]
    ran = sapp(*command(job, interrupted, "--overwrite"))
    assert ran.code == 0, ran.err


def test_resume_without_a_state_starts_fresh(sapp, job, undisturbed):
    out = job / "fresh"
    ran = sapp(*command(job, out, "--resume"))
    assert ran.code == 0, ran.err
    assert hashes(out) == hashes(undisturbed)


def test_an_export_that_fails_does_not_cost_the_training(job, undisturbed, monkeypatch):
    """A folder that appears at OUT while the run goes on is not touched; the state of the last step is there."""

    class Occupying(Interrupting):
        def step(self, record):
            if record.moment.step == 70:
                (out / "mine").mkdir(parents=True)

    monkeypatch.setattr(keeper, "LAST_STATE_SECONDS", 0)
    out = job / "late"
    recipe = load_recipe(job / "recipe.yaml")
    with pytest.raises(UsageError, match="exists already"):
        prune(recipe, job / "net.safetensors", out, Occupying())
    assert [path.name for path in (job / ".late.sapp-run").glob("step-*")] == ["step-000000080"]
    (out / "mine").rmdir()
    out.rmdir()
    prune(recipe, job / "net.safetensors", out, Interrupting(), resume=True)
    assert hashes(out) == hashes(undisturbed)
