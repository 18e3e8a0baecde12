"""The shape of a kernel: which blocks it multiplies by, in which vectors, how many rows of x at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sapp_cli.runtime.arithmetic import DOT_BF16, FP32, WIDENED_BF16, Arithmetic
from sapp_cli.runtime.isa import Isa

MOST_ROWS = 12
"""Rows of x in a tile. More would fit where a block is one vector, and bring nothing."""
LEAST_LANES = 8
"""A narrower vector costs as much time as one of these."""


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
def kernel_shape(isa: Isa, block: tuple[int, int], *, bf16: bool) -> KernelShape:
    """The cheapest way to cut blocks of (br, bc) into vectors."""
    rows, columns = block
    arithmetic = FP32 if not bf16 else DOT_BF16 if isa.bf16_dot else WIDENED_BF16
    most_vectors = 4 if isa.registers >= 32 else 2
    found = []
    for height in (divisor for divisor in range(1, rows + 1) if rows % divisor == 0):
        shape = KernelShape(isa, arithmetic, height, columns, _lanes(isa, height))
        count = rows // height * shape.vectors
        cost = count * max(shape.lanes, min(LEAST_LANES, isa.lanes))
        if shape.vectors <= most_vectors:
            found.append((cost, count, -height, shape))
    return min(found, key=lambda entry: entry[:3])[-1]


def _lanes(isa: Isa, height: int) -> int:
    """The widest vector that divides the height; where that is a narrow one, one that is wide enough for all of it."""
    exact = height & -height  # the largest power of two in it
    if exact >= min(LEAST_LANES, isa.lanes):
        return min(exact, isa.lanes)
    return min(isa.lanes, max(LEAST_LANES, 1 << (height - 1).bit_length()))
