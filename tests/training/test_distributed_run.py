"""`sapp prune` whole, on several processes: one writes and speaks, a signal stops all, --resume ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import losses, write_job
from tests.training.crew import run_processes

NETWORK = """
from torch import nn

class Net(nn.Module):
    # Every process draws its own dropout, and must go on where it was.
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 96), nn.Linear(96, 64)])
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        for layer in self.layers:
            x = self.dropout(layer(x).relu())
        return self.head(x)
"""
RECIPE = """
model: {factory: net.py:Net}
data: {source: tensors, files: {train: DATA/train.npz, validation: DATA/validation.npz}, batch_size: 16}
optimizer: {lr: 2e-3}
train: {steps: 60, log_every: 1, save_steps: 5, evaluate_every: 20, device: cpu}
prune: {block_size: 8, sparsity: 0.7, min_blocks: 20, phases: paper}
"""


@pytest.fixture(scope="module")
def job(digits, tmp_path_factory):
    """A folder with checkpoint and recipe."""
    return write_job(tmp_path_factory.mktemp("distributed"), digits, NETWORK, "Net", RECIPE)


def arguments(job, out, *more):
    return ["prune", str(job / "net.safetensors"), "-r", str(job / "recipe.yaml"), "-o", str(out), *more]


def sapp(command, stop_at: Path | None = None):
    """The command line in this process; process 1 gets a SIGTERM once the file or folder is there."""
    from sapp_cli.cli.main import main

    def send():
        while not stop_at.exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    if stop_at is not None and os.environ["RANK"] == "1":
        threading.Thread(target=send, daemon=True).start()
    sys.argv = ["sapp", *command]
    main()


ENGINES = {"DDP": [], "FSDP2": ["--set", "train.shard=true"]}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(job, engine):
    out = job / f"undisturbed-{engine}"
    main, other = run_processes(2, sapp, arguments(job, out, *ENGINES[engine]))
    assert (main.code, other.code) == (0, 0), main.said + other.said
    assert other.said == ""
    assert "step 60/60  sparse  sparsity 70" in main.said
    assert main.said.count("written to") == 1
    return out


@pytest.mark.parametrize("engine", ["DDP"], indirect=True)
def test_a_run_under_torchrun_writes_one_output_that_loads(job, undisturbed):
    out = job / "torchrun"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*launcher, "-m", "sapp_cli", *arguments(job, out, "--json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["out"] == str(out)
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    scope["Net"]().load_state_dict(load_file(out / "model.safetensors"))
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert [path.name for path in job.glob(".*")] == []


def test_stopped_by_a_signal_to_one_process_and_resumed(job, engine, undisturbed):
    out = job / f"stopped-{engine}"
    folder = job / f".stopped-{engine}.sapp-run"
    command = arguments(job, out, *ENGINES[engine])
    ended = run_processes(2, sapp, command, folder / "step-000000010")
    assert [end.code for end in ended] == [143, 143], ended
    said = "".join(end.said for end in ended)
    assert said.count("; the state is saved, the same command with --resume goes on\n") == 1
    assert "written" not in said
    assert not out.exists()

    (alone,) = run_processes(1, sapp, [*command, "--resume"])
    assert alone.code == 2
    assert alone.said.endswith(f"start anew with --overwrite:\n  processes: '2 ({engine})' then, '1' now\n")

    ended = run_processes(2, sapp, [*command, "--resume"])
    assert [end.code for end in ended] == [0, 0], ended
    assert "going on after step " in ended[0].said
    for name in ("model.safetensors", "sparse/model.safetensors"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    assert losses(out) == losses(undisturbed)
    assert not folder.exists()


def test_a_mistake_is_told_once(job):
    ended = run_processes(2, sapp, arguments(job, job))
    assert [end.code for end in ended] == [2, 2]
    said = "".join(end.said for end in ended)
    assert said == f"error: {job}: the checkpoint lies inside the output's folder; give another folder with -o\n"


def test_what_only_one_process_lacks_ends_all(job):
    ended = run_processes(2, without_data_on_one, arguments(job, job / "lacking"))
    assert [end.code for end in ended] == [4, 4], ended
    assert "elsewhere.npz" in ended[1].said
    assert "error:" not in ended[0].said
    assert not (job / "lacking").exists()


def without_data_on_one(command):
    if os.environ["RANK"] == "1":
        command = [*command, "--set", "data.files.train=elsewhere.npz"]
    sapp(command)
