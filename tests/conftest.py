"""Fixtures of several rooms: a real dense network on real images, and the command line in this process."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import train_digits

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and everything it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal():
    """A shell has SIGINT ignored by what it starts in the background, and nohup SIGHUP: so would all that starts from here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def sapp(capsys, monkeypatch):
    """Run the command line: sapp("report", path) -> Ran."""

    def run(*arguments) -> Ran:
        from sapp_cli.cli import apart
        from sapp_cli.cli.main import main
        from tests.training.crew import ReadyForks

        monkeypatch.setattr(apart, "CONTEXT", ReadyForks)  # real processes, and quick ones
        monkeypatch.setattr(sys, "argv", ["sapp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Ran(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with dense.safetensors, a network trained for a moment on real digits, data/, and a recipe for them."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_digits", "--out", str(folder), "--epochs", "6"])
        train_digits.main()
    (folder / "digits.py").write_text((REPOSITORY / "recipes" / "digits.py").read_text())
    (folder / "recipe.yaml").write_text(
        "# Digits, small\n"
        "model: {factory: digits.py:mlp}\n"
        "data:\n"
        "  source: tensors\n"
        "  files: {train: data/train.npz, validation: data/validation.npz}\n"
        "  batch_size: 64\n"
        "objective: {distill: {weight: 0.5}}\n"
        "optimizer: {lr: 3e-3}\n"
        "train: {steps: 60, evaluate_every: 30, log_every: 20}\n"
        "prune:\n"
        "  block_size: 8\n"
        "  sparsity: 0.9\n"
        "  rules:\n"
        "    - {match: output.weight, dense: true}\n"
    )
    return folder
