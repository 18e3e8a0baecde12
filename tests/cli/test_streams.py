"""Streams that are not a terminal in UTF-8: closed ones, pipes that nobody reads, encodings that lack letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.checkpoint.files import save_floats

SAPP = f"'{sys.executable}' -m sapp_cli"


@pytest.fixture
def shell(tmp_path):
    """Run a line of bash in a folder with net.safetensors; `sapp` is the program, in a terminal 80 columns wide."""
    save_floats(tmp_path / "net.safetensors", **{"größe.weight": np.ones((64, 64))})

    def run(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["bash", "-c", line.replace("sapp ", f"{SAPP} ")],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", **environment},
            capture_output=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_swallows_what_is_printed(shell, closed):
    ran = shell(f"sapp report net.safetensors {closed}")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert bool(ran.stdout) == (">&-" not in closed.split())


@pytest.mark.parametrize(
    "verb", ["report net.safetensors", "report net.safetensors --json", "prune --help", "recipes ls"]
)
def test_a_pipe_that_nobody_reads_ends_it_quietly(shell, verb):
    # The reader is gone before anything is printed, and its end of the pipe with it.
    ran = shell(f"(sleep 0.1; sapp {verb}; echo code $? >&2) | true")
    assert ran.stderr == b"code 141\n"


def test_letters_that_an_encoding_lacks_are_written_as_others(shell):
    ran = shell("sapp report net.safetensors", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.decode("ascii").splitlines()
    assert lines[1].split()[:3] == ["gr\\u00f6\\u00dfe.weight", "64x64", "16x16"]
    latin = shell("sapp report net.safetensors", PYTHONIOENCODING="latin-1").stdout.decode("latin-1")
    assert latin.splitlines()[1].split()[:3] == ["größe.weight", "64×64", "16×16"]
    assert shell("sapp recipes ls", PYTHONIOENCODING="ascii").returncode == 0


def test_a_document_means_the_same_in_any_encoding(shell):
    plain, there = (
        json.loads(shell("sapp report net.safetensors --json", PYTHONIOENCODING=encoding).stdout)
        for encoding in ("ascii", "utf-8")
    )
    assert plain == there
    assert there["layers"][0]["name"] == "größe.weight"
