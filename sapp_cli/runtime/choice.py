"""Which way a layer computes: the fastest of those it has, measured once for each kind of batch on this machine.

On a CPU: the generated kernel; plain torch; the dense weight with `F.linear`; the dense weight packed for oneDNN. On a GPU:
our Triton kernel with tiles of several sizes; torch's own one; plain torch; the dense weight with `F.linear`. Which one wins
depends on the sparsity, the shape, the batch and the machine, so nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.runtime.gpu import wait_for
from sapp_cli.runtime.timing import time_in_turns

Way: TypeAlias = Callable[[Tensor], Tensor]
"""x (M, in) -> y (M, out)."""

KERNEL, TRITON, TORCH_BSR, PLAIN, DENSE, ONEDNN = WAYS = ("kernel", "triton", "torch-bsr", "torch", "dense", "onednn")
CPU_WAYS = (KERNEL, PLAIN, DENSE, ONEDNN)
GPU_WAYS = (TRITON, TORCH_BSR, PLAIN, DENSE)
BUCKETS = (1, 4, 16, 64, 256, 1024, 4096)
"""Rows of x: 1, 2–4, 5–16, 17–64, 65–256, 257–1024, 1025–4096, more."""
TIE = 1.03
"""A block-sparse way is taken unless a dense one is faster by more than this: a third less memory is worth something."""
BUDGET = 0.02
"""Seconds for measuring one layer and bucket, about."""


@dataclass(frozen=True)
class Choice:
    """What a layer does for batches of a bucket, and the times that say so."""

    way: str
    """One of WAYS; of "triton" the tile as well, as in "triton-64x16x64-4w-4s"."""
    bucket: int
    threads: int
    seconds: Mapping[str, float]
    """Median of one call, for each way that was measured."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Ways that this machine should have and that failed, with what they said."""
    why: str = "asked for"
    """Of a way that was not measured."""

    @property
    def reason(self) -> str:
        """One line: "kernel for 5–16 rows: kernel 15 µs, dense 160 µs"."""
        times = sorted(self.seconds.items(), key=lambda item: item[1])
        shown = ", ".join(f"{way} {seconds * 1e6:.0f} µs" for way, seconds in times) or self.why
        failed = "".join(f"; {way} failed: {problem}" for way, problem in self.problems.items())
        return f"{self.way} for {bucket_name(self.bucket)}: {shown}{failed}"


def bucket_of(rows: int) -> int:
    """Position of the bucket that a batch of so many rows is in."""
    for position, most in enumerate(BUCKETS):
        if rows <= most:
            return position
    return len(BUCKETS)


def most_rows(bucket: int) -> int:
    """Of the batches in the bucket; of the last one, of which there is no most, more than in all others."""
    return BUCKETS[bucket] if bucket < len(BUCKETS) else 4 * BUCKETS[-1]


def bucket_name(bucket: int) -> str:
    if bucket == 0:
        return "1 row"
    if bucket == len(BUCKETS):
        return f"more than {BUCKETS[-1]} rows"
    return f"{BUCKETS[bucket - 1] + 1}–{BUCKETS[bucket]} rows"


def family(name: str) -> str:
    """The one of WAYS that a way with a tile of its own belongs to."""
    return TRITON if name.startswith(f"{TRITON}-") else name


@torch.no_grad()
def choose(ways: Mapping[str, Way], x: Tensor, budget: float = BUDGET) -> Choice:
    """The fastest way for batches like x."""
    bucket, threads = bucket_of(len(x)), torch.get_num_threads()
    if len(ways) == 1:
        return Choice(next(iter(ways)), bucket, threads, {})

    def call(way: Way) -> Callable[[], Tensor]:
        return lambda: way(x)

    calls = {name: call(way) for name, way in ways.items()}
    timings = time_in_turns(calls, budget=budget, drop_hopeless=True, finish=lambda: wait_for(x))
    seconds = {name: timing.median for name, timing in timings.items()}
    return Choice(fastest(seconds), bucket, threads, seconds)


def fastest(seconds: Mapping[str, float]) -> str:
    """The way of the least time; of a block-sparse and a dense one within TIE the block-sparse one."""
    return min(seconds, key=lambda name: seconds[name] * (TIE if name in (DENSE, ONEDNN) else 1))


def dense_ways(weight: Tensor, bias: Tensor | None, rows: int) -> dict[str, Way]:
    """The ways with a dense weight (out, in), for batches of about so many rows."""
    ways: dict[str, Way] = {DENSE: lambda x: F.linear(x, weight, bias)}
    if weight.is_cpu and weight.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        try:
            # What torch's own compiler uses for frozen weights; it has no other name.
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            linear = torch.ops.mkldnn._linear_pointwise
            linear(weight.new_zeros(1, weight.shape[1]), packed, bias, "none", [], "")
        except (AttributeError, RuntimeError):
            return ways
        ways[ONEDNN] = lambda x: linear(x, packed, bias, "none", [], "")
    return ways
