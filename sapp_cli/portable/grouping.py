"""Block rows of a layer in groups of one width each: a batched product wants the same number of blocks in every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class RowGroup:
    """Block rows that are multiplied together, each filled up with blocks of zeros to `width` blocks."""

    rows: tuple[int, ...]
    width: int

    @property
    def blocks(self) -> int:
        """Multiplied ones, those of zeros among them."""
        return len(self.rows) * self.width


def group_rows(counts: Sequence[int], most: int) -> tuple[RowGroup, ...]:
    """At most `most` groups of the block rows, with the fewest blocks of zeros that any such grouping has.

    `counts`: the kept blocks of each block row. A row without any still gets one block, of zeros. Rows of one count are never
    parted, so there may be fewer groups; narrow ones come first.
    """
    rows_of: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        rows_of.setdefault(max(count, 1), []).append(row)
    widths = sorted(rows_of)
    borders = _borders([len(rows_of[width]) for width in widths], widths, most)
    return tuple(
        RowGroup(tuple(sorted(row for width in widths[first:end] for row in rows_of[width])), widths[end - 1])
        for first, end in pairwise(borders)
    )


def _borders(rows: Sequence[int], widths: Sequence[int], most: int) -> list[int]:
    """Where groups of neighbours in `widths` begin and end, so that the sum of rows · largest width is the least."""
    ends = range(1, len(widths) + 1)
    before = [0]
    for count in rows:
        before.append(before[-1] + count)
    # best[end]: (blocks, borders) of the widths before `end` in as many groups as there were rounds, or fewer.
    best = {0: (0, [0])}
    for _ in range(most):
        best = best | {
            end: min(
                (blocks + (before[end] - before[first]) * widths[end - 1], [*borders, end])
                for first, (blocks, borders) in best.items()
                if first < end and len(borders) <= most
            )
            for end in ends
        }
    return best[len(widths)][1]
