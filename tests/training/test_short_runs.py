"""Short runs: the dense start by hand, which of its gradients count, what a run and `sapp plan` say of it."""

from dataclasses import asdict
from fractions import Fraction

import pytest
import torch
from torch import nn

from sapp_cli.core.schedule import Phase, PhaseSchedule, Span
from sapp_cli.pruner import DenseStart, Pruner
from sapp_cli.pruner.decisions import make_schedule
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import Recipe
from sapp_cli.short_runs import short_run_choices
from sapp_cli.training.run_record import DenseStartRecord


def lengths(steps, **settings):
    schedule = make_schedule(PruneSection.model_validate(settings), steps)
    return [phase.stop - phase.start for phase in schedule.phases]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (20, [4, 5, 11]),  # a fifth; the other 16 as 30 to 65: 5.05 and 10.95
        (40, [8, 10, 22]),
        (80, [8, 23, 49]),
        (160, [8, 48, 104]),  # 5 %, as it is in all longer runs
        (600, [30, 180, 390]),
    ],
)
def test_gradients_of_eight_batches_rank_the_blocks_of_a_short_run(steps, expected):
    assert lengths(steps) == expected
    assert lengths(steps, method="gradual-magnitude", score="fisher") == expected


def test_without_gradients_or_with_a_timetable_of_its_own_the_dense_start_is_as_written():
    assert lengths(40, method="gradual-magnitude") == [2, 12, 26]
    assert lengths(40, score="effective-norm") == [2, 12, 26]
    assert lengths(40, phases={"dense": 0.05, "rounds": 1, "last_round": 0.3, "final_sparse": 0.65}) == [2, 12, 26]


def look(losses, length, start=None, first=0):
    """(which steps count, what is said, the state) of these losses of a dense start of `length` steps."""
    half = Fraction(1, 2)
    schedule = PhaseSchedule((Span(Phase.DENSE, 0, half), Span(Phase.SPARSE, 0, half)), 2 * length)
    start, said = start or DenseStart(), []
    counted = [start.counts(schedule.at(step), loss, schedule, said.append) for step, loss in enumerate(losses, first)]
    return counted, said, start


def test_steps_above_twice_the_loss_of_the_start_do_not_count():
    # The lower of the first two of eight is 0.13; above 0.26 a step counts among the first four only.
    counted, said, start = look([0.13, 0.2, 0.77, 0.39, 0.41, 0.3, 0.5, 0.6], 8)
    assert counted == [True, True, True, True, False, False, False, False]
    assert (start.loss, start.sane) == (0.13, 2)
    assert said == [
        "step 4: the dense start has raised the loss from 0.13 to 0.39, before any block was removed; lower optimizer.lr, or "
        "lengthen lr_schedule.warmup"
    ]


def test_a_ruined_start_is_reported_once_and_as_it_happens():
    counted, said, start = look([0.13, 0.77, 0.8], 3)
    assert counted == [True, True, True]  # too few steps to do without
    assert [line.split(":")[0] for line in said] == ["step 2"]
    start.warn_of_few(said.append)
    assert said[1] == (
        "1 of the 3 steps of the dense start had a loss of at most 2 times that of its beginning; gradients of other steps "
        "rank the blocks as well, so lower optimizer.lr"
    )


def test_a_bad_second_step_is_no_part_of_the_start():
    said = look([0.0036, 127.0, 5.6, 8.6], 8)[1]
    assert len(said) == 1 and said[0].startswith("step 3: the dense start has raised the loss from 0.05 to 5.6")


def test_a_hard_batch_and_a_loss_that_begins_at_zero_are_no_ruin():
    hard = [0.3, 0.1, 0.5, 0.2, 0.3, 0.9, 1.1, 0.4, 2.0, 0.3] + 10 * [0.4]
    assert look(hard, 20)[1] == []
    counted, said, _ = look([0.0, 0.004, 0.03, 0.08], 4)
    assert (counted, said) == ([True] * 4, [])


def test_removed_blocks_may_raise_the_loss_as_they_like():
    counted, said, start = look([0.1, 0.1, 5.0, 5.0], 2)
    assert (counted, said, start.seen) == ([True] * 4, [], 2)


def test_infinite_losses_never_count():
    assert look([0.1, float("inf"), float("nan")], 8)[0] == [True, False, False]


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_resumed_run_judges_as_one_that_was_never_stopped(stop):
    losses = [0.13, 0.2, 0.77, 0.39, 0.41, 0.3, 0.5, 0.6]
    whole = look(losses, 8)
    before = look(losses[:stop], 8)
    record = DenseStartRecord.model_validate_json(DenseStartRecord(**asdict(before[2])).model_dump_json())
    after = look(losses[stop:], 8, DenseStart(**record.model_dump()), stop)
    assert (before[0] + after[0], before[1] + after[1], after[2]) == whole


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def test_the_pruner_gathers_only_from_steps_that_count():
    def gathered(losses):
        model = network()
        pruner = Pruner(model, {"block_size": 4, "min_blocks": 8, "sparsity": 0.5}, 40, notice=lambda line: None)
        optimizer = torch.optim.SGD(pruner.parameter_groups(lr=0.0, adam=False))
        for step, loss in enumerate(losses):
            pruner.step(step, optimizer)
            torch.manual_seed(step)
            model(torch.randn(8, 16)).square().mean().backward()
            pruner.observe(step, loss)
            optimizer.step()  # whose hook does not gather what did not count
            optimizer.zero_grad()
        return pruner.fisher.blocks

    sane = gathered([0.2] * 5)
    ruined = gathered([0.2] * 5 + [0.9] * 2)
    assert all(torch.equal(ruined[name], sane[name]) for name in sane)
    more = gathered([0.2] * 7)
    assert not all(torch.equal(more[name], sane[name]) for name in sane)


def choices(steps, **sections):
    recipe = Recipe.model_validate({"train": {"steps": steps}, **sections})
    return list(short_run_choices(recipe, make_schedule(recipe.prune, steps)))


def test_plan_says_what_a_short_run_changes():
    # Shares of 40 steps: 5.5 in a warm-up of ten, then a cosine whose 30 steps come to 15.5; 3/21 is 0.14.
    assert choices(40) == [
        "short run: warm-up of 10 steps (lr_schedule.warmup_steps); its share of the run would be 2",
        "short run: dense start of 8 steps, so that gradients of more than a batch or two rank the blocks",
        "short run: logits learn at 0.03 (prune.attention.lr); rates that add up to 3 would begin at 0.14",
    ]
    assert choices(600) == []
    assert choices(40, prune={"method": "magnitude"}, lr_schedule={"warmup": 0}) == []
    assert len(choices(40, optimizer={"name": "sgd"})) == len(choices(40, prune={"attention": {"lr": 0.1}})) == 2
