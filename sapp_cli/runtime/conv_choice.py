"""Which way a convolution computes: the fastest of those it has, measured once for each kind of input on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapp_cli.runtime.choice import CPU_WAYS, DENSE, GPU_WAYS, ONEDNN, TIE, WAYS, Way
from sapp_cli.runtime.gpu import wait_for
from sapp_cli.runtime.timing import time_in_turns

CHANNELS_LAST = "channels-last"
DENSE_WAYS = (DENSE, CHANNELS_LAST, ONEDNN)
SPARSE_WAYS = tuple(way for way in WAYS if way not in DENSE_WAYS)
CONV_WAYS = (*SPARSE_WAYS, *DENSE_WAYS)
CPU_CONV_WAYS = (*(way for way in CPU_WAYS if way in SPARSE_WAYS), *DENSE_WAYS)
GPU_CONV_WAYS = (*(way for way in GPU_WAYS if way in SPARSE_WAYS), DENSE, CHANNELS_LAST)
BUDGET = 0.05
"""Seconds for measuring one layer and bucket, about; convolutions take longer than products."""


@dataclass(frozen=True)
class ConvChoice:
    """What a convolution does for inputs of a bucket, and the times that say so."""

    way: str
    bucket: int
    channels_last: bool
    """How x lay in memory."""
    threads: int
    seconds: Mapping[str, float]
    """Of one call in the turn that was disturbed least, for each way that was measured: there are only a few turns."""

    @property
    def reason(self) -> str:
        """One line: "kernel for up to 4,096 outputs of x in channels-last memory: kernel 120 µs, dense 610 µs"."""
        memory = "channels-last" if self.channels_last else "contiguous"
        what = f"{self.way} for up to {4**self.bucket:,} outputs of x in {memory} memory"
        if not self.seconds:
            return f"{what}: asked for"
        times = sorted(self.seconds.items(), key=lambda item: item[1])
        return f"{what}: {', '.join(f'{way} {seconds * 1e6:.0f} µs' for way, seconds in times)}"


def conv_bucket_of(outputs: int) -> int:
    """The least b with 4ᵇ ≥ outputs: pixels of all images together."""
    return (max(0, outputs - 1).bit_length() + 1) // 2


@torch.no_grad()
def choose_conv(ways: Mapping[str, Way], x: Tensor, key: tuple[int, bool, int]) -> ConvChoice:
    """The fastest way for inputs like x."""
    if len(ways) == 1:
        return ConvChoice(next(iter(ways)), *key, {})

    def call(way: Way) -> Callable[[], Tensor]:
        return lambda: way(x)

    calls = {name: call(way) for name, way in ways.items()}
    timings = time_in_turns(calls, budget=BUDGET, least_turns=3, drop_hopeless=True, finish=lambda: wait_for(x))
    seconds = {name: timing.least for name, timing in timings.items()}
    best = min(seconds, key=lambda name: seconds[name] * (TIE if name in DENSE_WAYS else 1))
    return ConvChoice(best, *key, seconds)
