"""Runs of `sapp prune` that are stopped and gone on with: what they start from, how they are stopped, what they leave."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.training.crew import FORKS


def write_job(folder, digits, network, factory, recipe):
    """The folder with net.py, recipe.yaml (DATA: that of the digits) and net.safetensors, the untrained network of seed 0."""
    (folder / "net.py").write_text(network)
    (folder / "recipe.yaml").write_text(recipe.replace("DATA", str(digits / "data")))
    scope: dict[str, object] = {}
    exec(network, scope)
    torch.manual_seed(0)
    save_file(scope[factory]().state_dict(), folder / "net.safetensors")
    return folder


class Running:
    """The command line in a process of its own, with one thread, forked from one that has imported torch already."""

    def __init__(self, log, *arguments):
        self._log = log
        log.write_text("")
        self._process = FORKS.Process(target=_run, args=(log, *arguments))  # no daemon, for those have no processes
        self._process.start()
        atexit.register(self._process.kill)  # where a test failed before it ended

    def wait_for(self, *beginnings):
        """Until a line that it says begins with one of these."""
        for _ in range(60_000):
            if any(line.startswith(beginnings) for line in self._log.read_text().splitlines()):
                return
            assert self._process.is_alive(), self._log.read_text()
            time.sleep(0.002)
        pytest.fail(f"never said {beginnings}: {self._log.read_text()}")

    def send(self, number):
        """The signal."""
        os.kill(self._process.pid, number)

    def finish(self):
        """(exit code, what it said)."""
        self._process.join(120)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode, self._log.read_text()


def _run(log, *arguments):
    from sapp_cli.cli.main import main

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = ["sapp", *arguments]
    with log.open("w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        main()


class Interrupting:
    """A watcher that presses Ctrl-C after one step."""

    def __init__(self, step=None):
        self._step = step

    def say(self, text): ...

    def detail(self, text): ...

    def step(self, record):
        if record.moment.step == self._step:
            os.kill(os.getpid(), signal.SIGINT)


def hashes(out):
    """{weight file of an output: SHA-256}."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*.safetensors")
    }


def losses(out):
    """(step, loss, metrics) of every line of metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("metrics")) for line in lines]
