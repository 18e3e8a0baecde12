"""How long a run takes, from a few of its steps: the sum by hand, the steps taken, and the whole from the command line."""

import pytest

from sapp_cli.core.schedule import PRESETS, Phase, PhaseSchedule, one_shot_spans, sequential_spans
from sapp_cli.rehearsal import Duration, _Clock, _Step, _sum_up

DENSE, SPARSIFICATION, SPARSE = Phase.DENSE, Phase.SPARSIFICATION, Phase.SPARSE
FINE_TUNE = PhaseSchedule(sequential_spans(PRESETS["fine-tune"]), 100)  # 5 dense, 30 sparsification, 65 sparse


def test_the_sum_by_hand():
    steps = [
        _Step(DENSE, 3.0, begins=True, evaluated=False),  # 1 for the step, 2 to get going
        _Step(DENSE, 1.0, begins=False, evaluated=False),
        _Step(SPARSIFICATION, 2.0, begins=True, evaluated=False),
        _Step(SPARSIFICATION, 2.0, begins=False, evaluated=False),
        _Step(SPARSE, 1.5, begins=True, evaluated=False),
        _Step(SPARSE, 0.4, begins=False, evaluated=False),
        _Step(SPARSE, 0.6, begins=False, evaluated=False),
        _Step(SPARSE, 7.5, begins=False, evaluated=True),  # 7 of it for looking at the validation rows
    ]
    found = _sum_up(steps, FINE_TUNE, evaluate_every=25, seconds=48.0)
    training = (2 + 5 * 1.0) + 30 * 2.0 + (1 + 65 * 0.5) + 3 * 7.0  # evaluations after steps 25, 50 and 75
    assert found.training == pytest.approx(training)
    assert found.total == pytest.approx(48 - 18 + training)
    assert found.evaluation == pytest.approx(7.0)
    assert found.steps == pytest.approx({"dense": 1.0, "sparsification": 2.0, "sparse": 0.5})


class Nobody:
    def say(self, text): ...

    def detail(self, text): ...

    def step(self, record): ...


@pytest.mark.parametrize("spans", [sequential_spans(PRESETS["paper"]), one_shot_spans(PRESETS["fine-tune"])])
def test_steps_of_every_kind_of_phase_are_taken_in_order(spans):
    schedule = PhaseSchedule(spans, 20_000)
    steps = list(_Clock(Nobody(), None).choose(schedule))
    assert steps == sorted(set(steps))
    assert {schedule.at(step).phase for step in steps} == {phase.phase for phase in schedule.phases}
    assert len(steps) < 1000
    for phase in schedule.phases:
        if phase.phase is SPARSIFICATION:
            assert phase.stop - 1 in steps  # so that the sparse steps have as few blocks as they will
            break


def test_one_step_is_followed_by_an_evaluation():
    steps = list(_Clock(Nobody(), 1000).choose(PhaseSchedule(sequential_spans(PRESETS["fine-tune"]), 20_000)))
    assert next(step for step in steps if (step + 1) % 1000 == 0) == 999


def test_plan_says_how_long_a_run_takes(sapp, digits):
    ran = sapp("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--time", "--json")
    assert ran.code == 0, ran.err
    time = Duration(**ran.json["time"])
    assert 0 < time.training < time.total
    assert set(time.steps) == {"dense", "sparsification", "sparse"}
    assert time.evaluation is not None
    assert ran.json["memory"]["activations"] > 0
    text = sapp("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--time", "--steps", "30").out
    assert [line.split(" ")[0] for line in text.splitlines()[-4:-2]] == ["time:", "expected"]
