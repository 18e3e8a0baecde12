"""The shape of a kernel: which blocks it multiplies by, in which vectors, how many rows of x at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from sapp_cli.codegen.isa import Isa
from sapp_cli.runtime.arithmetic import DOT_BF16, FP32, WIDENED_BF16, Arithmetic

MOST_ROWS = 12
"""Rows of x in a tile. More would fit where a block is one vector, and bring nothing."""
CACHE_LINE = 64
"""Bytes."""
PANEL_ROWS = 48
"""Rows of x that are packed at a time: four of the tallest tiles."""
LEAST_LANES = 8
"""A narrower vector costs as much time as one of these."""
MOST_SUMS = 24
"""Vectors of sums in a tile whose vectors run over rows of x: as many as leave room for x and a weight."""
MOST_ROW_VECTORS = 3
LONG_ROW = 12 * 1024
"""Bytes of kept blocks in a block row. At 16 outputs vectors over rows of x are as fast from there on, 5 to 11 % faster in rows
twice as long, and in short ones as much slower."""
LONG_ROW_LINES = 4
"""Cache lines of each row of y that tiles over rows of x write together where block rows are long: 3 to 5 % faster than one.
Where they are short, y is in the cache, and one is as much faster."""


@dataclass(frozen=True)
class KernelShape:
    """Everything that the generated code depends on.

    A block may be taller than the registers hold; it is then stored as several, one above the other. So `height`
    divides the block's rows br. Rows are padded to whole vectors and columns to whole steps, with zeros, in memory only.
    """

    isa: Isa
    arithmetic: Arithmetic
    height: int
    """Rows of a block as the kernel sees it: outputs that a tile computes."""
    width: int
    """Columns of a block, bc."""
    lanes: int
    """Outputs in one vector."""
    row_vectors: int = 0
    """Vectors in the largest tile whose vectors run over rows of x; 0 where there is no such tile."""
    row_height: int = 0
    """Outputs that such a tile computes; divides `height`."""
    lines: int = 1
    """Cache lines of each row of y that such tiles write together."""
    scattered: bool = False
    """True if rows and block columns of x begin at places that the job names, as windows of an image do."""

    @property
    def name(self) -> str:
        return f"{self.isa.name}-{self.arithmetic.name}-{self.height}x{self.width}"

    @property
    def vectors(self) -> int:
        """Vectors that hold the outputs of one row of x."""
        return -(-self.height // self.lanes)

    @property
    def padded_height(self) -> int:
        return self.vectors * self.lanes

    @property
    def padded_width(self) -> int:
        return -(-self.width // self.arithmetic.step) * self.arithmetic.step

    @property
    def steps(self) -> int:
        """Steps of columns in a block."""
        return self.padded_width // self.arithmetic.step

    @property
    def block_size(self) -> int:
        """Entries of a stored block."""
        return self.padded_height * self.padded_width

    @property
    def tile_rows(self) -> int:
        """Rows of x in the tallest tile: their sums, one row of weights and one of x fill the registers."""
        return max(1, min(MOST_ROWS, (self.isa.registers - self.vectors - 1) // self.vectors))

    @property
    def panel_rows(self) -> int:
        """Rows of x that are packed at a time: as many as are a few tiles, and stay in the second-level cache."""
        return self.row_vectors * self.isa.lanes or PANEL_ROWS

    @property
    def row_pieces(self) -> int:
        """Tiles whose vectors run over rows of x that a block takes, one below the other."""
        return self.height // self.row_height

    @property
    def slot_width(self) -> int:
        """Outputs of a row that such a tile puts aside: as many as it computes, up to a power of two."""
        return 1 << (self.row_height - 1).bit_length()

    @property
    def group(self) -> int:
        """Block rows that are put aside before they are written: as many as fill so many cache lines of y."""
        return max(1, self.lines * CACHE_LINE // (self.slot_width * self.row_pieces * self.arithmetic.stored_bytes))

    @property
    def slots(self) -> int:
        """Tiles that are put aside."""
        return self.group * self.row_pieces

    def padded_rows(self, rows: int) -> int:
        """Rows of a panel in memory, for so many rows of x."""
        return -(-rows // self.isa.lanes) * self.isa.lanes if self.row_vectors else rows

    @property
    def unrolled_steps(self) -> int:
        """Steps written out in the body of the innermost loop: four columns, or LLVM loads too much too early; all eight
        of a small block, which then needs no loop.
        """
        step = self.arithmetic.step
        for count in (8, 4, 2):
            columns = count * step
            if self.steps % count == 0 and (columns <= 4 or (columns == 8 and count == self.steps)):
                return count
        return 1


@lru_cache
def kernel_shape(isa: Isa, block: tuple[int, int], *, bf16: bool, long_rows: bool = False) -> KernelShape:
    """The cheapest way to cut blocks of (br, bc) into vectors. `long_rows`: block rows are longer than LONG_ROW on average."""
    rows, columns = block
    arithmetic = FP32 if not bf16 else DOT_BF16 if isa.bf16_dot else WIDENED_BF16
    heights = [divisor for divisor in range(1, rows + 1) if rows % divisor == 0]
    found = [way for height in heights for way in _ways_to_cut(isa, arithmetic, rows // height, height, columns)]
    best = min(found, key=lambda way: way[0])[-1]
    if long_rows and best.vectors == 1 and best.height == best.lanes == isa.lanes and isa.registers >= 32:
        # Either form does as many multiplications; but tiles over outputs go through the weights four times a panel, and
        # these do not stay in the first-level cache. Taller blocks have the less of x to read, which makes up for it.
        best = replace(best, row_vectors=MOST_ROW_VECTORS, row_height=MOST_SUMS // MOST_ROW_VECTORS)
    return replace(best, lines=LONG_ROW_LINES) if long_rows and best.row_vectors else best


def _ways_to_cut(
    isa: Isa, arithmetic: Arithmetic, pieces: int, height: int, columns: int
) -> Iterator[tuple[tuple[float, ...], KernelShape]]:
    """Blocks cut into so many pieces of this height: what comes first in the order of preference is best.

    That order begins with the multiplications of vectors for one column and as many rows of x as a vector has lanes. A
    vector counts as a whole one even where it is half as wide: there is one load for each multiplication, of x, and loads
    do not get faster.
    """
    shape = KernelShape(isa, arithmetic, height, columns, _lanes(isa, height))
    count = pieces * shape.vectors
    if shape.vectors <= (4 if isa.registers >= 32 else 2):
        yield (count * isa.lanes, 0, count, -height), shape
    if isa.registers >= 32 and isa.lanes >= 16 and height <= MOST_SUMS // 2:
        vectors = min(MOST_ROW_VECTORS, MOST_SUMS // height)
        multiplications = max(height, (height + vectors) / vectors)  # or loads, if there are more of them
        yield (pieces * multiplications, 1, -height, -vectors), replace(shape, row_vectors=vectors, row_height=height)


def _lanes(isa: Isa, height: int) -> int:
    """The widest vector that divides the height; where that is a narrow one, one that is wide enough for all of it."""
    exact = height & -height  # the largest power of two in it
    if exact >= min(LEAST_LANES, isa.lanes):
        return min(exact, isa.lanes)
    return min(isa.lanes, max(LEAST_LANES, 1 << (height - 1).bit_length()))
