"""The plan of a search by hand, its budget for every length of a run, and what it chooses where the answer is known."""

from contextlib import suppress
from fractions import Fraction

import pytest

from sapp_cli.core.schedule import PRESETS, sequential_spans
from sapp_cli.errors import SettingError, TrainingError
from sapp_cli.training.rate_search import (
    BUDGET,
    Round,
    Trial,
    plan_search,
    rate_text,
    search_rate,
    shortest_trial,
)

ADAM = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


@pytest.mark.parametrize(
    ("steps", "rates", "rounds", "planned"),
    [
        (1000, ADAM, (Round(7, 100), Round(3, 300)), 1600),
        (600, ADAM, (Round(7, 60), Round(3, 180)), 960),
        (205, ADAM, (Round(7, 20), Round(3, 61)), 323),  # 0.1 × 205 and 0.3 × 205, rounded down
        (199, ADAM[1:-1], (Round(5, 59),), 295),  # 19 steps are too few: one round of 0.3 × 199
        (67, ADAM[1:-1], (Round(5, 20),), 100),
        (66, ADAM[2:-2], (Round(3, 33),), 99),
        (40, ADAM[2:-2], (Round(3, 20),), 60),
    ],
)
def test_the_plan_of_a_run_by_hand(steps, rates, rounds, planned):
    plan = plan_search(steps, 20, "adamw")
    assert (plan.rates, plan.rounds, plan.planned) == (rates, rounds, planned)
    assert plan.planned <= plan.budget == 2 * steps


def test_the_plan_in_words():
    plan = plan_search(1000, 20, "adamw")
    assert plan.text == "7 rates × 100 steps, the best 3 × 300 steps"
    assert plan.cost == (
        "1,600 steps, 160 % of the run; at most 2,000 (200 %), if the best rate is at the edge of the grid"
    )
    assert plan_search(50, 20, "adamw", [1e-3, 2e-3]).cost == "74 steps, 148 % of the run"


def test_a_run_too_short_names_the_length_that_is_enough():
    with pytest.raises(SettingError) as raised:
        plan_search(39, 20, "adamw")
    assert raised.value.problems == (
        (
            "optimizer.lr",
            "auto: 39 steps are too few to search a rate; 3 trials of at least 20 steps each, which this schedule needs, take "
            "a run of 40 steps: give more steps, or a number",
        ),
    )
    plan_search(40, 20, "adamw")


def test_sgd_has_a_grid_of_its_own():
    assert plan_search(1000, 20, "sgd").rates == (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2)


def test_listed_rates_share_the_same_budget():
    assert plan_search(1000, 20, "adamw", [4e-3, 1e-3, 2e-3]).rounds == (Round(3, 500),)
    plan = plan_search(1000, 20, "adamw", [4e-3, 1e-3, 2e-3, 8e-3])
    assert (plan.rates, plan.rounds) == ((1e-3, 2e-3, 4e-3, 8e-3), (Round(4, 175), Round(2, 450)))


@pytest.mark.parametrize(("preset", "shortest"), [("fine-tune", 20), ("paper", 30), ("criteo", 50)])
def test_the_shortest_trial_has_a_step_for_each_phase(preset, shortest):
    assert shortest_trial(sequential_spans(PRESETS[preset])) == shortest


class Curve:
    """Trials whose value is given by the rate alone; counts what they cost."""

    def __init__(self, value):
        self.value, self.tried = value, []

    def __call__(self, rate, steps):
        self.tried.append((rate, steps))
        value = self.value(rate)
        return Trial(rate, steps, value, "" if value is not None else "the loss is nan")

    @property
    def cost(self):
        return sum(steps for _, steps in self.tried)


def near(best):
    """Falls on both sides of `best`, by factors."""
    return lambda rate: -abs(Fraction(rate) / Fraction(best) - 1) if rate < best else -abs(float(rate / best) - 1)


@pytest.mark.parametrize("best", ADAM[1:-1])
def test_the_best_rate_within_the_grid_is_found(best):
    curve = Curve(near(best))
    choice = search_rate(plan_search(1000, 20, "adamw"), True, curve)
    assert choice.rate == best
    assert curve.tried[:7] == [(rate, 100) for rate in ADAM]
    assert {rate for rate, steps in curve.tried[7:]} >= {best}
    assert choice.notes == ()
    assert curve.cost == 1600


def test_lower_is_better_where_the_metric_says_so():
    curve = Curve(lambda rate: abs(rate - 2e-3))
    assert search_rate(plan_search(1000, 20, "adamw"), False, curve).rate == 2e-3


def test_of_a_tie_the_smaller_loss_counts():
    """Accuracy of a few rows has few values: three rates have the same, the loss tells them apart."""
    losses = {5e-4: 0.31, 1e-3: 0.3, 2e-3: 0.29}

    def attempt(rate, steps):
        return Trial(rate, steps, 0.975 if rate in losses else 0.5, loss=losses.get(rate, 0.2))

    choice = search_rate(plan_search(1000, 20, "adamw"), True, attempt)
    assert choice.rate == 2e-3
    assert choice.trials[-1].as_json() == {"learning_rate": 2e-3, "steps": 300, "value": 0.975, "loss": 0.29}


def test_ties_go_to_the_smaller_rate():
    curve = Curve(lambda rate: 1.0 if rate in (5e-4, 1e-3, 2e-3) else 0.0)
    assert search_rate(plan_search(1000, 20, "adamw"), True, curve).rate == 5e-4


def test_a_diverged_trial_loses_even_against_the_worst_value():
    curve = Curve(lambda rate: None if rate > 5e-4 else -1e9 * rate)
    choice = search_rate(plan_search(1000, 20, "adamw"), True, curve)
    assert choice.rate < 1e-4  # the smallest of the grid was best, so smaller ones were tried
    assert [trial.value for trial in choice.trials if trial.rate > 5e-4] == [None] * 4


def test_the_grid_is_widened_within_the_budget_and_the_search_says_so():
    curve = Curve(lambda rate: rate)  # greater is always better
    choice = search_rate(plan_search(1000, 20, "adamw"), True, curve)
    # 400 of 2,000 steps are left for rates beyond the grid: four times 100 in the first round
    assert curve.tried[7:11] == [(2e-2, 100), (5e-2, 100), (0.1, 100), (0.2, 100)]
    assert curve.tried[11:] == [(5e-2, 300), (0.1, 300), (0.2, 300)]
    assert choice.rate == 0.2
    assert curve.cost == 2000
    assert choice.notes == (
        "the best rate was at the edge of the grid, which was widened: 0.02, 0.05, 0.1, 0.2",
        "0.2 is the greatest rate tried; one beyond it may be better (the budget allows no more)",
    )


def test_listed_rates_are_not_widened():
    curve = Curve(lambda rate: rate)
    choice = search_rate(plan_search(1000, 20, "adamw", [1e-3, 2e-3]), True, curve)
    assert curve.tried == [(1e-3, 750), (2e-3, 750)]
    assert choice.notes == ("2e-3 is the greatest rate tried; one beyond it may be better (list more with --rates)",)


@pytest.mark.parametrize("steps", [40, 41, 66, 67, 100, 199, 200, 333, 1000, 12_345])
@pytest.mark.parametrize(
    "value", [lambda rate: rate, lambda rate: -rate, lambda rate: None, lambda rate: None if rate > 2e-4 else rate]
)
def test_all_trials_together_cost_at_most_twice_the_run(steps, value):
    curve = Curve(value)
    with suppress(TrainingError):  # of the curve that diverges everywhere
        search_rate(plan_search(steps, 20, "adamw"), True, curve)
    assert curve.cost <= BUDGET * steps
    assert all(trial_steps >= 20 for _, trial_steps in curve.tried)


def test_a_rate_that_diverges_in_the_longer_trials_is_not_chosen():
    class Late(Curve):
        def __call__(self, rate, steps):
            trial = super().__call__(rate, steps)
            return Trial(rate, steps, None, "the loss is nan") if steps > 100 and rate >= 1e-3 else trial

    choice = search_rate(plan_search(1000, 20, "adamw"), True, Late(near(2e-3)))
    assert choice.rate < 1e-3


@pytest.mark.parametrize(("rate", "text"), [(6e-4, "6e-4"), (7.5e-4, "7.5e-4"), (0.02, "0.02"), (1e-3, "1e-3")])
def test_a_rate_as_recipes_have_it(rate, text):
    assert rate_text(rate) == text
    assert float(text) == rate
