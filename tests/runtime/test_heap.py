"""Memory that is freed and asked for again: seen in the page faults of a process of its own."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sapp_cli.runtime.heap import CHOSEN_BY_USER

ON_GLIBC = platform.libc_ver()[0] == "glibc"
STEPS = """
import resource, sys, threading
import torch
from sapp_cli.runtime.heap import LARGEST_IN_TRAINING, keep_freed_memory

words = sys.argv[1:]
pieces, megabytes = (2, 100) if "large" in words else (8, 4)

def step():
    held = [torch.zeros(megabytes << 18) for _ in range(pieces)]  # all gone at the end

def steps():
    for _ in range(12):  # until the heap has gaps of the right size
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(said, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

said = None
if "keep" in words:
    said = keep_freed_memory()
if "train" in words:
    said = keep_freed_memory(LARGEST_IN_TRAINING)
if "thread" in words:
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
else:
    steps()
"""


def pages(*words: str, **environment: str) -> tuple[str, int]:
    """What the function said, and the pages that five steps touched anew."""
    ours = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *words],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, count = done.stdout.split()
    return said, int(count)


@pytest.mark.parametrize("words", ["keep", "keep large", "keep thread", "keep large thread", "train"])
def test_a_step_finds_its_pages_where_it_left_them(words: str) -> None:
    said, count = pages(*words.split())
    assert said == str(ON_GLIBC)
    assert count < 1000 if ON_GLIBC else count >= 0  # of 5 × 8 × 1,024 pages, or of 5 × 2 × 25,600


def test_large_pieces_of_training_leave_the_heap() -> None:
    said, count = pages("train", "large")
    assert said == str(ON_GLIBC)
    assert count > 5 * 2 * (100 << 20) / resource.getpagesize() * 0.9 or not ON_GLIBC or _huge_pages()


def _huge_pages() -> bool:
    """True where the system gives every large piece pages of two megabytes."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.is_file() and "[always]" in setting.read_text(encoding="ascii")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_MAX_", "65536"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_the_users_own_settings_stay(variable: str, value: str) -> None:
    said, count = pages("keep", "large", **{variable: value})
    assert said == "False"
    assert count > 1000 if ON_GLIBC and not _huge_pages() else count >= 0
