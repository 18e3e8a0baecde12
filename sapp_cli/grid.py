"""A weight as a matrix, a matrix as blocks, ragged edges: integers only, no tensors.

Letters used all over the package:
    out, in     rows and columns of a weight seen as a matrix
    br, bc      rows and columns of one block
    R, C        block rows and block columns of the grid
    n           number of blocks of a layer, R·C
    K           number of kept blocks
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal

LayoutKind = Literal["linear", "conv", "transposed"]


@dataclass(frozen=True)
class MatrixLayout:
    """How a weight tensor is seen as a matrix (out, in).

    `linear`      (out, in), as torch.nn.Linear stores it: the matrix is the tensor
    `transposed`  (in, out), as Hugging Face `Conv1D` stores it: the matrix is its transpose
    `conv`        (C_out, C_in/groups, spatial…): the matrix is (C_out, spatial…·C_in/groups), channels fastest
                  (the paper's HWC_in × C_out, App. C.1, for a 2-d convolution)

    A tensor becomes its matrix by permuting its axes by `axes` and reshaping to `matrix`; the way back is a reshape to
    `permuted_shape` and a permutation by `inverse_axes`. NumPy and torch share these numbers.
    """

    kind: LayoutKind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.shape) >= 2, f"a weight of shape {self.shape} is not a matrix"
        assert self.kind == "conv" or len(self.shape) == 2, f"{self.kind} weights have two axes, not {self.shape}"

    @property
    def axes(self) -> tuple[int, ...]:
        if self.kind == "conv":
            return (0, *range(2, len(self.shape)), 1)
        return (1, 0) if self.kind == "transposed" else (0, 1)

    @property
    def inverse_axes(self) -> tuple[int, ...]:
        axes = self.axes
        return tuple(axes.index(axis) for axis in range(len(axes)))

    @property
    def permuted_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def moves_no_entry(self) -> bool:
        """True if a tensor and its matrix have their entries in one order, as for a 1×1 or a depthwise convolution."""
        moved = [axis for axis in self.axes if self.shape[axis] > 1]
        return moved == sorted(moved)

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in)."""
        rows, *columns = self.permuted_shape
        return rows, math.prod(columns)


@dataclass(frozen=True)
class BlockGrid:
    """A grid of ⌈out/br⌉ × ⌈in/bc⌉ blocks over a matrix; blocks at the right and bottom edges may be ragged."""

    matrix: tuple[int, int]  # (out, in)
    block: tuple[int, int]  # (br, bc)
    size: tuple[int, int] = field(init=False, repr=False, compare=False)  # (R, C); every step asks for it, often
    ragged: bool = field(init=False, repr=False, compare=False)
    """True if a block at the right or bottom edge is smaller than the others."""

    def __post_init__(self) -> None:
        assert min(self.matrix) >= 0 and min(self.block) >= 1, f"no grid of {self.block} blocks over {self.matrix}"
        size = -(-self.matrix[0] // self.block[0]), -(-self.matrix[1] // self.block[1])
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "ragged", self.padded != self.matrix)

    @property
    def count(self) -> int:
        """N = R·C."""
        rows, columns = self.size
        return rows * columns

    @property
    def padded(self) -> tuple[int, int]:
        """(R·br, C·bc): the matrix with its ragged edge blocks made whole."""
        rows, columns = self.size
        return rows * self.block[0], columns * self.block[1]

    def stored_bytes(self, kept: int, itemsize: int) -> int:
        """Bytes of the three tensors of the block-sparse form with `kept` blocks (docs/format.md)."""
        return kept * math.prod(self.block) * itemsize + 4 * (self.size[0] + 1) + 4 * kept

    def saves(self, kept: int, itemsize: int) -> bool:
        """True if the block-sparse form is smaller than the dense one."""
        return self.stored_bytes(kept, itemsize) < math.prod(self.matrix) * itemsize

    def extent(self, axis: Literal[0, 1], index: int) -> tuple[int, int]:
        """First and one-past-last row (axis 0) or column (axis 1) of block row or column `index`."""
        start = index * self.block[axis]
        return start, min(start + self.block[axis], self.matrix[axis])


@lru_cache(maxsize=64)  # layers of one size have the same count in every step, and exact fractions are slow
def final_count(sparsity: Fraction, blocks: int) -> int:
    """Blocks a layer of `blocks` keeps in the end: n − ⌈s·n⌉, and one where that would be none.

    `sparsity` is exact: in floats ⌈0.55·100⌉ is 56.
    """
    return max(1, blocks - math.ceil(sparsity * blocks))
