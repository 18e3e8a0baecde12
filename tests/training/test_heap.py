"""Memory that is freed and asked for again: seen in the page faults of a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ON_GLIBC = platform.libc_ver()[0] == "glibc"
STEPS = """
import resource, sys
import torch
from sapp_cli.training.heap import keep_freed_memory

def step():
    held = [torch.zeros(1 << 20) for _ in range(8)]  # 4 MB each, all gone at the end

said = keep_freed_memory() if "keep" in sys.argv else None
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(said, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> tuple[str, int]:
    """What the function said, and the pages that five steps touched anew."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, count = done.stdout.split()
    return said, int(count)


def test_a_step_finds_its_pages_where_it_left_them() -> None:
    said, count = faults("keep")
    assert said == str(ON_GLIBC)
    assert count < 1000 if ON_GLIBC else count >= 0  # of 5 × 8 × 1,024 pages


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")],
)
def test_the_users_own_settings_stay(variable: str, value: str) -> None:
    said, count = faults("keep", **{variable: value})
    assert said == "False"
    assert count > 5000 if ON_GLIBC else count >= 0
