"""What happens at step t of a run: phases as a pure function of the step (paper §3.1, §4.2, App. C.1).

A timetable is a few exact fractions of the run; `sequential_spans`, `alternating_spans` and `one_shot_spans` turn them
into the phases of one method, `PhaseSchedule` into steps. Nothing here keeps a counter: the step is an argument.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from itertools import accumulate, pairwise


class Phase(str, Enum):
    """Dense: every block trains. Sparsification: blocks leave step by step. Sparse: the mask is fixed."""

    DENSE = "dense"
    SPARSIFICATION = "sparsification"
    SPARSE = "sparse"


Split = tuple[Fraction, Fraction, Fraction]
"""How the sparsification, the sparse and the dense phase of a round share it: 1, 1, 1 are equal thirds."""


@dataclass(frozen=True)
class Timetable:
    """Exact fractions of a run. The rounds share what `dense`, `last_round` and `final_sparse` leave over."""

    dense: Fraction
    rounds: int
    last_round: Fraction
    final_sparse: Fraction
    split: Split = (Fraction(1), Fraction(1), Fraction(1))
    last_split: Split = (Fraction(1), Fraction(0), Fraction(0))

    def __post_init__(self) -> None:
        for name in ("dense", "last_round", "final_sparse"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction of the run, from 0 to 1, not {float(getattr(self, name)):g}")
        if self.rounds < 1:
            raise ValueError(f"rounds is at least 1, not {self.rounds}")
        left = 1 - self.dense - self.last_round - self.final_sparse
        if self.rounds == 1 and left != 0:
            raise ValueError(f"dense + last_round + final_sparse is {float(1 - left):g}; with one round it must be 1")
        if self.rounds > 1 and left <= 0:
            raise ValueError(
                f"dense + last_round + final_sparse is {float(1 - left):g}; {self.rounds - 1} more rounds need a part of 1"
            )
        for name in ("split", "last_split"):
            sparsification, sparse, _ = getattr(self, name)
            if sparsification + sparse == 0:
                raise ValueError(f"{name} gives a round neither a sparsification nor a sparse phase")
        if self.rounds > 1 and self.split[2] == 0:
            raise ValueError(
                "split gives a round no dense phase, without which the next round has nothing to choose from"
            )

    @property
    def round(self) -> Fraction:
        """The fraction of each round before the last."""
        if self.rounds == 1:
            return self.last_round
        return (1 - self.dense - self.last_round - self.final_sparse) / (self.rounds - 1)


PRESETS = {
    "paper": Timetable(Fraction(10, 100), 7, Fraction(15, 100), Fraction(15, 100)),  # ImageNet, App. C.1
    "criteo": Timetable(Fraction(20, 100), 10, Fraction(6, 100), Fraction(20, 100)),  # App. C.2
    "fine-tune": Timetable(Fraction(5, 100), 1, Fraction(30, 100), Fraction(65, 100)),  # ours, for trained checkpoints
}


@dataclass(frozen=True)
class Span:
    """One phase as a fraction of the run. Round 0 stands before the first round, and after the last one."""

    phase: Phase
    round: int
    fraction: Fraction


def sequential_spans(timetable: Timetable) -> tuple[Span, ...]:
    """Sequential attention: each round sparsifies, stays sparse, goes dense, as `split` shares it, the last as `last_split`."""
    spans = [Span(Phase.DENSE, 0, timetable.dense)]
    for number in range(1, timetable.rounds + 1):
        last = number == timetable.rounds
        length, split = (timetable.last_round, timetable.last_split) if last else (timetable.round, timetable.split)
        parts = zip((Phase.SPARSIFICATION, Phase.SPARSE, Phase.DENSE), split, strict=True)
        spans += [Span(phase, number, length * part / sum(split)) for phase, part in parts]
    spans.append(Span(Phase.SPARSE, 0, timetable.final_sparse))
    return _without_empty(spans)


def with_dense_start(spans: tuple[Span, ...], fraction: Fraction) -> tuple[Span, ...]:
    """The same phases with a dense start of this fraction of the run; the others share the rest as they did before."""
    dense, *others = spans
    assert dense.phase is Phase.DENSE, "these phases do not begin dense"
    stretch = (1 - fraction) / (1 - dense.fraction)
    return replace(dense, fraction=fraction), *(replace(span, fraction=span.fraction * stretch) for span in others)


def alternating_spans(timetable: Timetable) -> tuple[Span, ...]:
    """ACDC: each round is sparse, then dense, in equal halves; what the last round has more makes its dense phase longer.

    A single round is run as two of half its length: ACDC needs a sparse phase to come back from.
    """
    spans = [Span(Phase.DENSE, 0, timetable.dense)]
    rounds, length, last = timetable.rounds, timetable.round, timetable.last_round
    if rounds == 1:
        rounds, length, last = 2, last / 2, last / 2
    for number in range(1, rounds + 1):
        whole = length if number < rounds else last
        sparse = min(length, whole) / 2
        spans += [Span(Phase.SPARSE, number, sparse), Span(Phase.DENSE, number, whole - sparse)]
    spans.append(Span(Phase.SPARSE, 0, timetable.final_sparse))
    return _without_empty(spans)


def one_shot_spans(timetable: Timetable) -> tuple[Span, ...]:
    """Prune once: after the dense start in a timetable of one round, when the final sparse phase begins in the others."""
    dense = timetable.dense if timetable.rounds == 1 else 1 - timetable.final_sparse
    return _without_empty([Span(Phase.DENSE, 0, dense), Span(Phase.SPARSE, 0, 1 - dense)])


def _without_empty(spans: list[Span]) -> tuple[Span, ...]:
    """Drop phases the timetable gives no time at all; a phase that merely rounds to no step is an error of the run."""
    return tuple(span for span in spans if span.fraction > 0)


def ramp(progress: float, exponent: float) -> float:
    """Share of the target sparsity reached at `progress` in [0, 1] of a sparsification phase: steep first, then flat.

    (1 − e^(−c·u)) / (1 − e^(−c)), paper §4.2; c = 0 is its limit, the straight line.
    """
    if exponent == 0:
        return progress
    return math.expm1(-exponent * progress) / math.expm1(-exponent)


@dataclass(frozen=True)
class Moment:
    """Where a run is at one step."""

    step: int  # from 0
    phase: Phase
    round: int  # 1 … rounds; 0 before the first and in the final sparse phase
    progress: float  # u = (j + 1)/T in step j = 0 … T − 1 of a phase of T steps: (0, 1]
    begins: bool  # first step of its phase
    after_dense: bool  # the phase before this one was dense, or there was none
    dense_ahead: bool  # a later phase is dense: pruned weights will come back

    @property
    def name(self) -> str:
        return f"{self.phase.value} {self.round}" if self.round else self.phase.value


@dataclass(frozen=True)
class ScheduledPhase:
    """A phase with its steps: start ≤ step < stop."""

    phase: Phase
    round: int
    start: int
    stop: int


class TooFewSteps(ValueError):
    """A run in which a phase would get no step; `fewest` steps are enough."""

    def __init__(self, fewest: int, message: str) -> None:
        super().__init__(message)
        self.fewest = fewest


class PhaseSchedule:
    """The phases of a run of `steps` steps, boundaries at ⌊f·steps + ½⌋ of the exact cumulative fractions.

    Raises TooFewSteps, naming the smallest number of steps that works, if a phase would get none.
    """

    def __init__(self, spans: tuple[Span, ...], steps: int) -> None:
        assert sum(span.fraction for span in spans) == 1, "phases must fill the run"
        bounds = _bounds(spans, steps)
        if not _all_positive(bounds):
            fewest = next(n for n in range(max(steps, 1), 10**9) if _all_positive(_bounds(spans, n)))
            short = next(i for i, span in enumerate(spans) if bounds[i] == bounds[i + 1])
            raise TooFewSteps(
                fewest,
                f"{steps} steps leave none for the phase '{spans[short].phase.value}' of round {spans[short].round}; "
                f"this timetable of {len(spans)} phases needs at least {fewest} steps",
            )
        self.steps = steps
        self.spans = spans
        self.phases = tuple(
            ScheduledPhase(span.phase, span.round, start, stop)
            for span, start, stop in zip(spans, bounds[:-1], bounds[1:], strict=True)
        )
        self._starts = bounds[:-1]

    def at(self, step: int) -> Moment:
        """The moment of step 0 ≤ step < steps."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside a run of {self.steps} steps")
        index = bisect_right(self._starts, step) - 1
        phase = self.phases[index]
        return Moment(
            step=step,
            phase=phase.phase,
            round=phase.round,
            progress=(step - phase.start + 1) / (phase.stop - phase.start),
            begins=step == phase.start,
            after_dense=index == 0 or self.phases[index - 1].phase is Phase.DENSE,
            dense_ahead=any(later.phase is Phase.DENSE for later in self.phases[index + 1 :]),
        )


def _bounds(spans: tuple[Span, ...], steps: int) -> list[int]:
    cumulative = accumulate((span.fraction for span in spans), initial=Fraction(0))
    return [math.floor(fraction * steps + Fraction(1, 2)) for fraction in cumulative]


def _all_positive(bounds: list[int]) -> bool:
    return all(start < stop for start, stop in pairwise(bounds))
