import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.errors import DataError
from sapp_cli.inputs.holdout import digest, hold_out


def digests(rows):
    return [digest([("text", str(row).encode())]) for row in rows]


def test_digest_by_hand():
    content = (4).to_bytes(8, "little") + b"text" + (2).to_bytes(8, "little") + b"hi"
    assert digest([("text", b"hi")]) == hashlib.sha256(content).digest()


def test_columns_do_not_run_together():
    assert digest([("a", b"xb"), ("c", b"")]) != digest([("a", b"x"), ("bc", b"")])


def test_the_rows_of_least_digest_are_held_out():
    train, validation = hold_out([b"d", b"a", b"c", b"b"], 0.5, "rows.csv")
    assert (train, validation) == ([0, 2], [1, 3])


@given(st.lists(st.integers(0, 60), min_size=5, max_size=60), st.floats(0.05, 0.5), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(rows, share, shuffle):
    shuffled = shuffle.sample(rows, len(rows))
    try:
        train, validation = hold_out(digests(rows), share, "rows.csv")
    except DataError:
        with pytest.raises(DataError):
            hold_out(digests(shuffled), share, "rows.csv")
        return
    _, again = hold_out(digests(shuffled), share, "rows.csv")
    assert {rows[index] for index in validation} == {shuffled[index] for index in again}
    assert not {rows[index] for index in train} & {rows[index] for index in validation}
    assert sorted(train + validation) == list(range(len(rows)))


def test_the_share_is_met_where_rows_differ():
    rows = random.Random(0).sample(range(10**6), 1000)
    assert len(hold_out(digests(rows), 0.1, "rows.csv")[1]) == 100
    assert len(hold_out(digests(rows[:3]), 0.1, "rows.csv")[1]) == 1


def test_equal_rows_cannot_be_divided():
    with pytest.raises(DataError) as error:
        hold_out(digests(["same"] * 4), 0.1, "rows.csv")
    assert str(error.value) == (
        "rows.csv: holding out 0.1 of its 4 rows (1 different) leaves none to train on; name validation rows in "
        "data.files.validation"
    )
