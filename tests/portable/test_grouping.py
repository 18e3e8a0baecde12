"""Groups of block rows: whole, few, and as little filled up as any grouping of as many."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.portable.grouping import RowGroup, group_rows


def blocks(groups):
    return sum(group.blocks for group in groups)


def test_by_hand():
    """Rows of 1, 7, 0, 2 and 8 blocks. In two groups: three rows of 2 and two of 8 make 22; one row and four of 8 more."""
    counts = [1, 7, 0, 2, 8]
    assert group_rows(counts, 1) == (RowGroup((0, 1, 2, 3, 4), 8),)
    assert group_rows(counts, 2) == (RowGroup((0, 2, 3), 2), RowGroup((1, 4), 8))
    assert group_rows(counts, 9) == (RowGroup((0, 2), 1), RowGroup((3,), 2), RowGroup((1,), 7), RowGroup((4,), 8))
    assert [blocks(group_rows(counts, most)) for most in (1, 2, 3, 4)] == [40, 22, 20, 19]


def test_equal_rows_are_one_group():
    assert group_rows([3] * 5, 4) == (RowGroup((0, 1, 2, 3, 4), 3),)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=14), st.integers(1, 4))
def test_no_grouping_fills_up_less(counts, most):
    groups = group_rows(counts, most)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(counts)))
    assert len(groups) <= most
    assert all(group.width >= counts[row] for group in groups for row in group.rows)
    # Every way to cut the sorted rows: a group's blocks are its rows times its widest one.
    rows = sorted(max(count, 1) for count in counts)
    least = min(
        sum((end - start) * rows[end - 1] for start, end in pairwise((0, *cuts, len(rows))))
        for number in range(min(most, len(rows)))
        for cuts in combinations(range(1, len(rows)), number)
    )
    assert blocks(groups) == least
