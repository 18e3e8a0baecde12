"""How long a run will take: a rehearsal of it, all as in the run but for a few steps of each phase, and a sum.

    duration = estimate_duration(recipe, Path("my-model"), watcher)      # `sapp plan --time`

What a rehearsal writes lies in a temporary folder and is gone with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from sapp_cli.core.schedule import Phase, PhaseSchedule
from sapp_cli.pipeline.prune import prune
from sapp_cli.pipeline.watcher import Watcher
from sapp_cli.recipe.load import LoadedRecipe
from sapp_cli.recipe.schema import with_rate
from sapp_cli.training.loop import StepRecord
from sapp_cli.training.rate_search import centre

SECONDS = 3.0
"""Of each kind of phase, about."""
LEAST_STEPS = 4
MOST_STEPS = 300


@dataclass(frozen=True)
class Duration:
    """Seconds that a run on this machine takes."""

    training: float
    total: float
    steps: dict[str, float]
    """{phase: seconds of one of its steps}."""
    evaluation: float | None
    """Of one during the run; None where the recipe asks for none."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate_duration(recipe: LoadedRecipe, checkpoint_path: Path, watcher: Watcher) -> Duration:
    """That of `prune` with this recipe and one process. Raises what `prune` raises."""
    train = recipe.recipe.train.model_copy(update={"trackers": [], "save_steps": None, "stop_on_collapse": False})
    settings = recipe.recipe.model_copy(update={"train": train})
    if settings.optimizer.lr == "auto":  # the time of a step is the same for every rate
        settings = with_rate(settings, centre(settings.optimizer.name))
    alike = replace(recipe, recipe=settings)
    clock = _Clock(watcher, train.evaluate_every)
    with TemporaryDirectory(prefix="sapp-rehearsal-") as folder:
        result = prune(alike, checkpoint_path, Path(folder) / "out", clock, chosen=clock.choose)
    assert result is not None and clock.schedule is not None, "one process, and it is the main one"
    return _sum_up(clock.steps, clock.schedule, train.evaluate_every, result.seconds)


@dataclass(frozen=True)
class _Step:
    phase: Phase
    seconds: float
    begins: bool
    evaluated: bool


@dataclass
class _Clock:
    """The watcher of a rehearsal, which also says which steps it has."""

    audience: Watcher
    evaluate_every: int | None
    schedule: PhaseSchedule | None = None
    steps: list[_Step] = field(default_factory=list)
    _before: float = 0.0

    def say(self, text: str) -> None:
        self.audience.detail(text)

    def detail(self, text: str) -> None: ...

    def step(self, record: StepRecord) -> None:
        moment = record.moment
        self.steps.append(
            _Step(moment.phase, record.seconds - self._before, moment.begins, evaluated=bool(record.metrics))
        )
        self._before = record.seconds

    def choose(self, schedule: PhaseSchedule) -> Iterator[int]:
        """Some steps from the beginning of the first phase of each kind, and one that is followed by an evaluation."""
        self.schedule = schedule
        seen: set[Phase] = set()
        for phase in schedule.phases:
            if phase.phase in seen:
                continue
            seen.add(phase.phase)
            following = phase.start
            for following in self._while_it_pays(phase.start, phase.stop):
                yield following
            left = range(following + 1, phase.stop)
            evaluated = self._next_evaluation(left)
            yield from evaluated
            if phase.phase is Phase.SPARSIFICATION and phase.stop - 1 > max([following, *evaluated]):
                yield phase.stop - 1  # where the masks reach their target, which the next phase computes with

    def _while_it_pays(self, start: int, stop: int) -> Iterator[int]:
        began = time.perf_counter()
        for number, step in enumerate(range(start, min(stop, start + MOST_STEPS))):
            if number >= LEAST_STEPS and time.perf_counter() - began > SECONDS:
                return
            yield step

    def _next_evaluation(self, left: range) -> list[int]:
        """The first of the steps that an evaluation follows; none, if one was seen or asked for before."""
        every = self.evaluate_every
        if every is None or any(step.evaluated for step in self.steps):
            return []
        first = -(-(left.start + 1) // every) * every - 1
        return [first] if first in left else []


def _sum_up(steps: list[_Step], schedule: PhaseSchedule, evaluate_every: int | None, seconds: float) -> Duration:
    """The whole from its parts; `seconds` are those of the rehearsal."""
    each: dict[Phase, float] = {}
    begins: dict[Phase, float] = {}
    for kind in {step.phase for step in steps}:
        mine = [step for step in steps if step.phase is kind]
        plain = [step.seconds for step in mine if not step.begins and not step.evaluated]
        each[kind] = mean(plain or [step.seconds for step in mine])
        begins[kind] = max([0.0, *(step.seconds - each[kind] for step in mine if step.begins and not step.evaluated)])
    evaluations = [max(0.0, step.seconds - each[step.phase]) for step in steps if step.evaluated]
    evaluation = mean(evaluations) if evaluations else None
    training = sum((phase.stop - phase.start) * each[phase.phase] + begins[phase.phase] for phase in schedule.phases)
    if evaluation is not None and evaluate_every is not None:
        training += evaluation * ((schedule.steps - 1) // evaluate_every)
    rehearsed = sum(step.seconds for step in steps)
    named = {kind.value: cost for kind, cost in each.items()}
    return Duration(training, seconds - rehearsed + training, named, evaluation)
