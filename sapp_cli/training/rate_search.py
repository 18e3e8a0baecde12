"""The search behind `optimizer.lr: auto`: successive halving over whole short runs, by a pure plan.

    plan = plan_search(steps=1000, shortest=20, optimizer="adamw")      # 7 rates × 100 steps, the best 3 × 300 steps
    choice = search_rate(plan, higher_is_better=True, attempt=train_one)

A trial is a run of its own with fewer steps: it starts from the same weights with the same seed, and has the whole phase
schedule. All trials together take at most `BUDGET` times the steps of the run itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from sapp_cli.core.schedule import Span
from sapp_cli.errors import SettingError, TrainingError

BUDGET = 2
"""Steps of all trials together, in steps of the run."""
DIGITS = (1, 2, 5)
"""Of the rates, in each power of ten: equal distances on a log scale, as far as one digit allows."""
CENTRES = {"adamw": (1, -3), "adam": (1, -3), "sgd": (2, -2)}
"""{optimizer: (digit, power of ten)} of the rate in the middle of the grid: 1e-3, and 0.02."""
FIRST = Fraction(7, 10)
"""Of the run's steps: what the first round takes, shared by all rates."""
SECOND = Fraction(9, 10)
"""Of the run's steps: what the second round takes, shared by the better half of the rates."""
SINGLE = Fraction(15, 10)
"""Of the run's steps: what the only round takes, where two rounds would be too short."""
FINALISTS = 3


@dataclass(frozen=True)
class Round:
    """Trials of one length; the next round takes the best of them."""

    rates: int
    steps: int  # of each trial


@dataclass(frozen=True)
class SearchPlan:
    """What a search will do: rates and rounds; what the rounds leave of the budget is for rates beyond the grid."""

    steps: int  # of the run whose rate is searched
    rates: tuple[float, ...]  # ascending
    rounds: tuple[Round, ...]
    widens: bool  # False for rates that the user listed

    @property
    def budget(self) -> int:
        """The most steps that all trials together take."""
        return BUDGET * self.steps

    @property
    def planned(self) -> int:
        """Steps of the rounds, without those of rates beyond the grid."""
        return sum(each.rates * each.steps for each in self.rounds)

    @property
    def text(self) -> str:
        """Like "7 rates × 100 steps, the best 3 × 300 steps"."""
        first, *later = self.rounds
        parts = [f"{first.rates} rates × {first.steps:,} steps"]
        return ", ".join([*parts, *(f"the best {each.rates} × {each.steps:,} steps" for each in later)])

    @property
    def cost(self) -> str:
        """Like "1,600 steps, 160 % of the run; at most 2,000 (200 %), if the best rate is at the edge of the grid"."""
        share = f"{self.planned / self.steps:.0%}".replace("%", " %")
        most = f"; at most {self.budget:,} ({BUDGET * 100} %), if the best rate is at the edge of the grid"
        return f"{self.planned:,} steps, {share} of the run{most if self.widens else ''}"

    def as_json(self) -> dict[str, Any]:
        return {
            "rates": list(self.rates),
            "rounds": [{"trials": each.rates, "steps": each.steps} for each in self.rounds],
            "steps": self.planned,
            "most_steps": self.budget if self.widens else self.planned,
            "share_of_run": self.planned / self.steps,
        }


@dataclass(frozen=True)
class Trial:
    """A short run that was tried."""

    rate: float
    steps: int
    value: float | None = None  # of the metric; None: the run diverged
    error: str = ""
    loss: float | None = None  # on the validation data, where it is not the metric itself

    def as_json(self) -> dict[str, Any]:
        failed = {"error": self.error} if self.error else {}
        loss = {} if self.loss is None else {"loss": self.loss}
        return {"learning_rate": self.rate, "steps": self.steps, "value": self.value, **loss, **failed}


@dataclass(frozen=True)
class Choice:
    """The rate that a search found, and what it tried for it."""

    rate: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


def plan_search(steps: int, shortest: int, optimizer: str, rates: Sequence[float] | None = None) -> SearchPlan:
    """The plan of a search for a run of `steps` steps; a trial has at least `shortest`.

    `rates`: the ones to try, in place of the grid about `CENTRES[optimizer]`. A short run gets one round of fewer rates.
    Raises SettingError if not even these fit.
    """
    if rates is None:
        candidates = [(grid, _rounds(steps, len(grid), two)) for grid, two in _grids(optimizer)]
    else:
        listed = tuple(sorted({*rates}))
        candidates = [(listed, _rounds(steps, len(listed), two)) for two in (len(listed) > FINALISTS, False)]
    for grid, rounds in candidates:
        if min(each.steps for each in rounds) >= shortest:
            return SearchPlan(steps, grid, rounds, widens=rates is None)
    count = len(candidates[-1][0])
    needed = math.ceil(shortest * count / SINGLE)
    raise SettingError(
        [
            (
                "optimizer.lr",
                f"auto: {steps} steps are too few to search a rate; {count} trials of at least {shortest} steps each, which "
                f"this schedule needs, take a run of {needed} steps: give more steps, or a number",
            )
        ]
    )


def shortest_trial(spans: Sequence[Span]) -> int:
    """Steps in which every phase gets at least one, wherever the boundaries are rounded to."""
    return math.ceil(1 / min(span.fraction for span in spans))


def centre(optimizer: str) -> float:
    """The rate in the middle of the grid; stands for the rate where only times and sizes are asked for."""
    digit, power = CENTRES[optimizer]
    return float(f"{digit}e{power}")


def _grids(optimizer: str) -> list[tuple[tuple[float, ...], bool]]:
    """(rates, whether there are two rounds), the longest search first."""
    return [(_grid(optimizer, 7), True), (_grid(optimizer, 5), False), (_grid(optimizer, 3), False)]


def _rounds(steps: int, rates: int, two: bool) -> tuple[Round, ...]:
    if not two:
        return (Round(rates, math.floor(SINGLE * steps / rates)),)
    finalists = min(FINALISTS, rates // 2)
    return Round(rates, math.floor(FIRST * steps / rates)), Round(finalists, math.floor(SECOND * steps / finalists))


def _grid(optimizer: str, count: int) -> tuple[float, ...]:
    digit, power = CENTRES[optimizer]
    middle = DIGITS.index(digit) + len(DIGITS) * power
    return tuple(_rate(middle + offset) for offset in range(-(count // 2), count // 2 + 1))


def _rate(place: int) -> float:
    """The rate at this place of the scale … 0.5, 1, 2, 5, 10 …, on which 1 has place 0."""
    power, digit = divmod(place, len(DIGITS))
    return float(f"{DIGITS[digit]}e{power}")


def _beyond(rate: float, up: bool) -> float:
    """The next rate of the scale."""
    place = next(place for place in range(-60, 60) if math.isclose(_rate(place), rate))
    return _rate(place + 1 if up else place - 1)


@dataclass
class _Search:
    plan: SearchPlan
    sign: int  # 1: higher is better
    attempt: Callable[[float, int], Trial]
    trials: list[Trial] = field(default_factory=list)

    def run(self, rate: float, steps: int) -> Trial:
        self.trials.append(self.attempt(rate, steps))
        return self.trials[-1]

    def ranked(self, trials: Iterable[Trial]) -> list[Trial]:
        """The best first; of a tie the smaller loss, then the smaller rate. A diverged trial has no place.

        A share of few rows has few values: rates that differ by a factor of ten have the same accuracy after a short run.
        """
        return sorted(
            (trial for trial in trials if trial.value is not None),
            key=lambda t: (-self.sign * (t.value or 0.0), math.inf if t.loss is None else t.loss, t.rate),
        )

    def round(self, rates: Sequence[float], steps: int, later: int) -> list[Trial]:
        """The trials of a round, the best first. `later`: steps that the budget keeps for the rounds after it."""
        tried = [self.run(rate, steps) for rate in sorted(rates)]
        while self.plan.widens and self.spent + steps + later <= self.plan.budget:
            best = next(iter(self.ranked(tried)), None)
            up = best is not None and best.rate == self.greatest
            if best is not None and not up and best.rate != self.smallest:
                break
            tried.append(self.run(_beyond(self.greatest if up else self.smallest, up), steps))
        return self.ranked(tried)

    @property
    def spent(self) -> int:
        return sum(trial.steps for trial in self.trials)

    @property
    def smallest(self) -> float:
        return min(trial.rate for trial in self.trials)

    @property
    def greatest(self) -> float:
        return max(trial.rate for trial in self.trials)


def search_rate(plan: SearchPlan, higher_is_better: bool, attempt: Callable[[float, int], Trial]) -> Choice:
    """The rate with the best value in the last round; of a tie the one with the smaller loss, then the smaller rate.

    `attempt(rate, steps)` makes a trial. If the best rate of a round is the smallest or the greatest tried so far, the
    next one beyond it is tried too, as long as the budget lasts. Raises TrainingError if every trial diverged.
    """
    search = _Search(plan, 1 if higher_is_better else -1, attempt)
    rates, before = list(plan.rates), list[Trial]()
    for number, each in enumerate(plan.rounds):
        later = sum(next_one.rates * next_one.steps for next_one in plan.rounds[number + 1 :])
        ranked = search.round(rates, each.steps, later)
        if not ranked:
            break
        before = ranked
        if number + 1 < len(plan.rounds):
            rates = [trial.rate for trial in ranked[: plan.rounds[number + 1].rates]]
    broken = {trial.rate for trial in search.trials if trial.value is None}
    best = next((trial for trial in before if trial.rate not in broken), None)
    if best is None:
        lowest = rate_text(search.smallest)
        raise TrainingError(
            f"optimizer.lr auto: every trial diverged, down to a rate of {lowest}; the last one: {search.trials[-1].error}"
        )
    return Choice(best.rate, tuple(search.trials), tuple(_notes(plan, search, best)))


def _notes(plan: SearchPlan, search: _Search, best: Trial) -> Iterable[str]:
    beyond = sorted({trial.rate for trial in search.trials} - {*plan.rates})
    if beyond:
        rates = ", ".join(map(rate_text, beyond))
        yield f"the best rate was at the edge of the grid, which was widened: {rates}"
    for edge, name in ((search.smallest, "smallest"), (search.greatest, "greatest")):
        if best.rate == edge:
            why = "the budget allows no more" if plan.widens else "list more with --rates"
            yield f"{rate_text(best.rate)} is the {name} rate tried; one beyond it may be better ({why})"


def rate_text(rate: float) -> str:
    """Like 6e-4, or 0.02."""
    if rate >= 0.01:
        return f"{rate:g}"
    digits, _, power = f"{rate:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
