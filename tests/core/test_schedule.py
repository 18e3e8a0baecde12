"""Timetables worked by hand from the paper's fractions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.core.schedule import (
    PRESETS,
    Phase,
    PhaseSchedule,
    Timetable,
    alternating_spans,
    one_shot_spans,
    ramp,
    sequential_spans,
)

DENSE, SPARSIFICATION, SPARSE = Phase.DENSE, Phase.SPARSIFICATION, Phase.SPARSE


def phases(spans, steps):
    return [(phase.phase, phase.round, phase.start, phase.stop) for phase in PhaseSchedule(spans, steps).phases]


def test_paper_timetable_in_3000_steps():
    # 10 % dense; six rounds of 10 % in thirds; a seventh of 15 %, sparsification alone; 15 % sparse.
    rounds = []
    for number in range(1, 7):
        start = 300 * number
        rounds += [
            (SPARSIFICATION, number, start, start + 100),
            (SPARSE, number, start + 100, start + 200),
            (DENSE, number, start + 200, start + 300),
        ]
    expected = [(DENSE, 0, 0, 300), *rounds, (SPARSIFICATION, 7, 2100, 2550), (SPARSE, 0, 2550, 3000)]
    assert phases(sequential_spans(PRESETS["paper"]), 3000) == expected


def test_acdc_under_paper_ends_with_a_longer_dense_phase():
    found = phases(alternating_spans(PRESETS["paper"]), 2000)
    rounds = []
    for number in range(1, 8):
        start = 200 * number
        rounds += [(SPARSE, number, start, start + 100), (DENSE, number, start + 100, start + 200)]
    rounds[-1] = (DENSE, 7, 1500, 1700)  # 5 % longer
    assert found == [(DENSE, 0, 0, 200), *rounds, (SPARSE, 0, 1700, 2000)]


def test_criteo_timetable_in_1000_steps():
    sequential = phases(sequential_spans(PRESETS["criteo"]), 1000)
    assert sequential[0] == (DENSE, 0, 0, 200)
    assert sequential[1:4] == [(SPARSIFICATION, 1, 200, 220), (SPARSE, 1, 220, 240), (DENSE, 1, 240, 260)]
    assert sequential[-2:] == [(SPARSIFICATION, 10, 740, 800), (SPARSE, 0, 800, 1000)]
    alternating = phases(alternating_spans(PRESETS["criteo"]), 1000)
    assert alternating[1:3] == [(SPARSE, 1, 200, 230), (DENSE, 1, 230, 260)]
    assert alternating[-3:] == [(SPARSE, 10, 740, 770), (DENSE, 10, 770, 800), (SPARSE, 0, 800, 1000)]


def shared(split, last_split, rounds=3):
    """30 % dense, rounds of 20 %, the last of 15 %, 15 % sparse."""
    as_fractions = [tuple(map(Fraction, shares)) for shares in (split, last_split)]
    last, final = Fraction(15, 100), Fraction(15, 100)
    return Timetable(1 - last - final - Fraction(20, 100) * (rounds - 1), rounds, last, final, *as_fractions)


def test_a_round_is_shared_out_as_the_split_says():
    table = shared((1, 2, 1), (2, 0, 1))
    assert phases(sequential_spans(table), 100) == [
        (DENSE, 0, 0, 30),
        (SPARSIFICATION, 1, 30, 35),
        (SPARSE, 1, 35, 45),
        (DENSE, 1, 45, 50),
        (SPARSIFICATION, 2, 50, 55),
        (SPARSE, 2, 55, 65),
        (DENSE, 2, 65, 70),
        (SPARSIFICATION, 3, 70, 80),
        (DENSE, 3, 80, 85),
        (SPARSE, 0, 85, 100),
    ]
    # Methods without a sparsification phase have no such thirds.
    plain = shared((1, 1, 1), (1, 0, 0))
    assert alternating_spans(table) == alternating_spans(plain)
    assert one_shot_spans(table) == one_shot_spans(plain)


def test_the_papers_first_ablation_has_dense_and_sparse_phases_of_equal_length():
    table = shared((0, 1, 1), (0, 1, 1), rounds=2)
    assert phases(sequential_spans(table), 200) == [
        (DENSE, 0, 0, 100),
        (SPARSE, 1, 100, 120),
        (DENSE, 1, 120, 140),
        (SPARSE, 2, 140, 155),
        (DENSE, 2, 155, 170),
        (SPARSE, 0, 170, 200),
    ]


def test_the_tenth_criteo_round_may_be_one_like_the_others():
    table = PRESETS["criteo"]
    whole = Timetable(table.dense, table.rounds, table.last_round, table.final_sparse, last_split=table.split)
    assert phases(sequential_spans(whole), 1000)[-4:] == [
        (SPARSIFICATION, 10, 740, 760),
        (SPARSE, 10, 760, 780),
        (DENSE, 10, 780, 800),
        (SPARSE, 0, 800, 1000),
    ]


@pytest.mark.parametrize(
    ("split", "last_split", "problem"),
    [
        ((0, 0, 1), (1, 0, 0), "split gives a round neither a sparsification nor a sparse phase"),
        ((1, 1, 1), (0, 0, 0), "last_split gives a round neither a sparsification nor a sparse phase"),
        ((1, 1, 0), (1, 0, 0), "split gives a round no dense phase"),
    ],
)
def test_a_split_that_makes_no_round(split, last_split, problem):
    with pytest.raises(ValueError, match=f"^{problem}"):
        shared(split, last_split)


def test_fine_tune_timetable_in_1000_steps():
    table = PRESETS["fine-tune"]
    assert phases(sequential_spans(table), 1000) == [
        (DENSE, 0, 0, 50),
        (SPARSIFICATION, 1, 50, 350),
        (SPARSE, 0, 350, 1000),
    ]
    assert phases(alternating_spans(table), 1000) == [
        (DENSE, 0, 0, 50),
        (SPARSE, 1, 50, 125),
        (DENSE, 1, 125, 200),
        (SPARSE, 2, 200, 275),
        (DENSE, 2, 275, 350),
        (SPARSE, 0, 350, 1000),
    ]
    assert phases(one_shot_spans(table), 1000) == [(DENSE, 0, 0, 50), (SPARSE, 0, 50, 1000)]


def test_one_shot_prunes_when_the_final_sparse_phase_begins_in_timetables_of_several_rounds():
    assert phases(one_shot_spans(PRESETS["paper"]), 100) == [(DENSE, 0, 0, 85), (SPARSE, 0, 85, 100)]
    assert phases(one_shot_spans(PRESETS["criteo"]), 100) == [(DENSE, 0, 0, 80), (SPARSE, 0, 80, 100)]


def test_boundaries_round_half_up_on_exact_fractions():
    # 5 % of 30 steps is 1.5 -> 2; of 10 steps .5 -> 1, where rounding to even would give 0; 35 % of 10 is 3.5 -> 4.
    assert phases(sequential_spans(PRESETS["fine-tune"]), 30)[0] == (DENSE, 0, 0, 2)
    assert phases(sequential_spans(PRESETS["fine-tune"]), 10) == [
        (DENSE, 0, 0, 1),
        (SPARSIFICATION, 1, 1, 4),
        (SPARSE, 0, 4, 10),
    ]


def test_a_phase_without_a_step_is_an_error_that_names_the_smallest_run():
    with pytest.raises(ValueError) as error:
        PhaseSchedule(sequential_spans(PRESETS["fine-tune"]), 9)
    assert str(error.value) == (
        "9 steps leave none for the phase 'dense' of round 0; this timetable of 3 phases needs at least 10 steps"
    )
    PhaseSchedule(sequential_spans(PRESETS["fine-tune"]), 10)


def test_progress_of_a_phase_of_four_steps_goes_by_quarters_to_one():
    table = Timetable(Fraction(1, 5), 1, Fraction(2, 5), Fraction(2, 5))
    schedule = PhaseSchedule(sequential_spans(table), 10)
    moments = [schedule.at(step) for step in range(10)]
    assert [moment.progress for moment in moments] == [0.5, 1, 0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75, 1]
    assert [moment.begins for moment in moments] == [True, False, True, False, False, False, True, False, False, False]


def test_moments_know_what_was_before_and_what_comes():
    schedule = PhaseSchedule(alternating_spans(PRESETS["fine-tune"]), 40)
    starts = [schedule.at(phase.start) for phase in schedule.phases]
    assert [moment.after_dense for moment in starts] == [True, True, False, True, False, True]
    assert [moment.dense_ahead for moment in starts] == [True, True, True, True, False, False]


def test_a_dense_fraction_of_zero_drops_the_phase():
    table = Timetable(Fraction(0), 1, Fraction(1, 2), Fraction(1, 2))
    assert phases(sequential_spans(table), 4) == [(SPARSIFICATION, 1, 0, 2), (SPARSE, 0, 2, 4)]


def test_timetables_that_do_not_fill_the_run_are_refused():
    with pytest.raises(ValueError, match=r"dense \+ last_round \+ final_sparse is 0.9; with one round it must be 1"):
        Timetable(Fraction(1, 10), 1, Fraction(3, 10), Fraction(5, 10))
    with pytest.raises(ValueError, match="2 more rounds need a part of 1"):
        Timetable(Fraction(1, 2), 3, Fraction(1, 4), Fraction(1, 4))


def test_ramp_by_hand():
    # c = 4, u = 1/2: (1 − e⁻²)/(1 − e⁻⁴) = 1/(1 + e⁻²)
    assert ramp(0.5, 4) == pytest.approx(0.8807970779778823)
    assert ramp(0.25, 0) == 0.25
    assert ramp(1.0, 4) == 1.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 30))
def test_the_ramp_never_falls_and_stays_between_its_ends(first, second, exponent):
    low, high = sorted((first, second))
    assert 0 <= ramp(low, exponent) <= ramp(high, exponent) <= 1


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    spans=st.sampled_from([sequential_spans, alternating_spans, one_shot_spans]),
    steps=st.integers(100, 5000),
)
def test_phases_fill_every_run_without_gaps(preset, spans, steps):
    schedule = PhaseSchedule(spans(PRESETS[preset]), steps)
    assert schedule.phases[0].start == 0
    assert schedule.phases[-1].stop == steps
    assert schedule.phases[-1].phase is SPARSE
    for before, after in zip(schedule.phases[:-1], schedule.phases[1:], strict=True):
        assert before.start < before.stop == after.start
        assert before.phase is not after.phase
    for phase in schedule.phases:
        assert schedule.at(phase.start).begins
        assert schedule.at(phase.stop - 1).progress == 1
