"""Thousands of damaged checkpoints: each is read whole, or refused in one line. scripts/fuzz_checkpoint.py has more of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.fuzz_checkpoint import run

ROOT = Path(__file__).parents[2]


def test_mutations_of_valid_checkpoints() -> None:
    command = [sys.executable, "scripts/fuzz_checkpoint.py", "--mutations", "1000", "--seed", "1"]
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    counts = re.fullmatch(r"1,000 mutations of seed 1 in \d+ s: (.*)\n", finished.stdout)
    assert counts, finished.stdout
    found = {what: int(count) for count, what in re.findall(r"([\d]+) (\w+)", counts[1].replace(",", ""))}
    assert set(found) == {"CheckpointError", "ResourceError", "accepted"}
    assert sum(found.values()) == 1000
    assert found["accepted"] > 80  # mutations that break everything test the first check only


@pytest.mark.parametrize(
    ("check", "without", "found"),
    [
        ("sapp_cli.checkpoint.block_sparse_file.index_problem", lambda *arguments: None, r"ValueError|IndexError"),
        ("sapp_cli.checkpoint.safetensors._check_coverage", lambda *arguments: None, "SafetensorError|AssertionError"),
        ("sapp_cli.checkpoint.locate._plain", lambda name: True, r"Forbidden: open .*outside\.safetensors"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_it_finds_a_check_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, without: object, found: str
) -> None:
    monkeypatch.setattr(check, without)
    with pytest.raises(AssertionError, match=found):
        run(range(1_500, 20_000), 0, tmp_path)
