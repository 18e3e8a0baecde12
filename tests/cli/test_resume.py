"""An interrupted run goes on and ends with the same bytes as one that was left alone."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import save_file

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
    """A folder with checkpoint and recipe; the command that prunes it."""
    import torch

    folder = tmp_path_factory.mktemp("resume")
    (folder / "net.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE.replace("DATA", str(digits / "data")))
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    save_file(scope["net"]().state_dict(), folder / "net.safetensors")
    return folder


def start(job, out, *more):
    command = [sys.executable, "-m", "sapp_cli", "prune", str(job / "net.safetensors"), "-r", str(job / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-o", str(out), *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(running):
    stderr = running.communicate(timeout=120)[1]
    return running.returncode, stderr


def hashes(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*.safetensors")
    }


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("metrics")) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(job):
    out = job / "undisturbed"
    code, stderr = finish(start(job, out))
    assert code == 0, stderr
    return out


def wait_for(running, beginning):
    for line in running.stderr:
        if line.startswith(beginning):
            return
    pytest.fail(f"the run ended before '{beginning}'")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_resume_goes_on(job, undisturbed, number, code):
    out = job / f"signal-{number}"
    running = start(job, out)
    wait_for(running, "step 32/80")
    running.send_signal(number)
    found, stderr = finish(running)
    assert found == code
    last = stderr.splitlines()[-1]
    assert last.startswith("sapp: interrupted after step ")
    assert last.endswith(" of 80; the state is saved, the same command with --resume goes on")
    assert not out.exists()
    assert (job / f".{out.name}.sapp-run").is_dir()
    found, stderr = finish(start(job, out, "--resume"))
    assert found == 0, stderr
    step = last.split("after step ")[1].split(" ")[0]
    assert f"going on after step {step} of 80" in stderr.splitlines()
    assert hashes(out) == hashes(undisturbed)
    assert losses(out) == losses(undisturbed)
    assert not (job / f".{out.name}.sapp-run").exists()


def test_killed_again_and_again_it_ends_with_the_same_bytes(job, undisturbed):
    out = job / "killed"
    moments = random.Random(7)
    progress = []
    for _ in range(6):
        running = start(job, out, "--resume", "--set", "train.save_steps=1")
        wait_for(running, ("step ", "going on"))
        time.sleep(moments.uniform(0, 0.15))  # in a step, or in the middle of writing a state
        running.kill()
        finish(running)
        states = sorted(path.name for path in (job / ".killed.sapp-run").glob("step-*"))
        progress.append(states[-1] if states else "step-000000000")
    assert progress == sorted(progress)
    code, stderr = finish(start(job, out, "--resume"))
    assert code == 0, stderr
    assert hashes(out) == hashes(undisturbed)
    assert losses(out) == losses(undisturbed)


@pytest.fixture
def interrupted(job):
    """OUT of a run that stopped after a few steps."""
    out = job / "stopped"
    running = start(job, out, "--overwrite")
    wait_for(running, "step 12/80")
    running.send_signal(signal.SIGTERM)
    assert finish(running)[0] == 143
    return out


def test_what_changed_since_is_shown_and_nothing_is_lost(job, interrupted):
    folder = job / ".stopped.sapp-run"
    states = sorted(folder.iterdir())
    code, stderr = finish(start(job, interrupted, "--resume", "--sparsity", "0.8", "--set", "train.log_every=3"))
    assert code == 2
    assert stderr.splitlines()[-2:] == [
        f"error: {folder}: cannot go on with the interrupted run, for this changed since; change it back, or start anew with "
        "--overwrite:",
        "  prune.sparsity: 0.7 then, 0.8 now",
    ]
    code, stderr = finish(start(job, interrupted))
    assert code == 2
    assert "steps done; --resume goes on with it, --overwrite starts anew" in stderr.splitlines()[-1]
    assert sorted(folder.iterdir()) == states


def test_a_damaged_state_says_so(job, interrupted):
    folder = job / ".stopped.sapp-run"
    state = next(folder.glob("step-*")) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    code, stderr = finish(start(job, interrupted, "--resume"))
    assert code == 4
    assert str(state) in stderr.splitlines()[-1]
    code, stderr = finish(start(job, interrupted, "--overwrite"))
    assert code == 0, stderr


def test_resume_without_a_state_starts_fresh(job, undisturbed):
    out = job / "fresh"
    code, stderr = finish(start(job, out, "--resume"))
    assert code == 0, stderr
    assert hashes(out) == hashes(undisturbed)


def test_an_export_that_fails_does_not_cost_the_training(job, undisturbed, monkeypatch):
    """A folder that appears at OUT while the run goes on is not touched; the state of the last step is there."""
    import torch

    from sapp_cli import pipeline
    from sapp_cli.errors import UsageError
    from sapp_cli.recipe.load import load_recipe
    from sapp_cli.training import keeper

    class Watcher:
        def say(self, text): ...

        def detail(self, text): ...

        def step(self, record):
            if record.moment.step == 70:
                (out / "mine").mkdir(parents=True)

    monkeypatch.setattr(keeper, "LAST_STATE_SECONDS", 0)
    out = job / "late"
    recipe = load_recipe(job / "recipe.yaml")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(UsageError, match="exists already"):
            pipeline.prune(recipe, job / "net.safetensors", out, Watcher())
        assert [path.name for path in (job / ".late.sapp-run").glob("step-*")] == ["step-000000080"]
        (out / "mine").rmdir()
        out.rmdir()
        pipeline.prune(recipe, job / "net.safetensors", out, Watcher(), resume=True)
    finally:
        torch.set_num_threads(threads)
    assert hashes(out) == hashes(undisturbed)
