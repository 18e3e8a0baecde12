"""Times of several ways to do the same thing, taken in turns, so that whatever disturbs the machine disturbs them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

HOPELESS = 4.0
"""Somebody this many times slower than the best in the first turn is not asked again."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, in all turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def least(self) -> float:
        """Of the turn that was disturbed least; on a busy machine the ratio of two of these is the steadier one."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the turns lie within this many seconds (interquartile range)."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4)
        return high - low


def time_in_turns(
    ways: Mapping[str, Callable[[], Any]],
    *,
    budget: float,
    least_turns: int = 5,
    sample: float = 5e-4,
    drop_hopeless: bool = False,
    finish: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """The times of each way. A turn takes each of them once, as often in a row as fills `sample` seconds.

    It stops after `budget` seconds in all, but not before `least_turns` turns. `finish` waits for what the calls in a row
    have started: a GPU works on after a call has returned, and its users wait once, not after every layer. `clock` may count
    something else than time as it passes, such as `time.thread_time`, which leaves out what others do on the machine.
    """
    first = {name: _seconds(run, 1, finish, clock, warm=True) for name, run in ways.items()}
    hopeless = {name for name in ways if drop_hopeless and first[name] > HOPELESS * min(first.values())}
    ways = {name: run for name, run in ways.items() if name not in hopeless}
    repeats = {name: max(1, min(1000, int(sample / max(first[name], 1e-7)))) for name in ways}
    turns: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + budget
    turn = 0
    while turn < least_turns or time.perf_counter() < end:
        for name, run in ways.items():
            turns[name].append(_seconds(run, repeats[name], finish, clock))
        turn += 1
    return {name: Timing((seconds,) if name in hopeless else tuple(turns[name])) for name, seconds in first.items()}


def _seconds(
    run: Callable[[], Any],
    repeats: int,
    finish: Callable[[], Any],
    clock: Callable[[], float],
    *,
    warm: bool = False,
) -> float:
    if warm:
        run()
    finish()
    start = clock()
    for _ in range(repeats):
        run()
    finish()
    return (clock() - start) / repeats
