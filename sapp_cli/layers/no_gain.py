"""Which layers are not faster block-sparse than dense: a rule from shape, block and target (docs/runtime.md).

It was made from measurements (docs/runtime.md has the command) and asks no clock, so that a run chooses the same blocks on
every machine. What a layer really computes with is measured where it runs, in `runtime.choice`.
"""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from sapp_cli.grid import BlockGrid

ROWS_FOR_ALL = 12
"""A kernel's vectors run over the rows of a block. With r rows it is faster than dense if at most r/12 of
the blocks are kept."""
SHORT_RUN = 8
"""Values. Where a window of a convolution is put together from shorter runs of x, copying takes as long as multiplying."""
FEW_OUTPUTS = 64
"""Channels of y. With more of them there is enough to multiply for each value that is copied."""


def run_of(module: nn.Module) -> int | None:
    """Values of a convolution's window that lie together in x, channels last; None for what is not a convolution."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return None
    channels, last = module.in_channels // module.groups, module.kernel_size[-1]
    return channels if last > 1 and module.dilation[-1] > 1 else channels * last


def why_no_gain(grid: BlockGrid, kept: int, run: int | None) -> str | None:
    """Why the layer is not faster with `kept` of its blocks than dense; None if it is. `run`: see `run_of`."""
    rows, columns = grid.block
    if Fraction(kept, grid.count) > Fraction(rows, ROWS_FOR_ALL):
        height = "1 row" if rows == 1 else f"{rows} rows"
        most = float(Fraction(100 * rows, ROWS_FOR_ALL))
        return f"blocks of {height} gain only where at most {most:.1f} % are kept"
    apart = run is not None and run < min(SHORT_RUN, grid.matrix[1]) and run % columns > 0
    if apart and grid.matrix[0] <= FEW_OUTPUTS:
        values = "1 value" if run == 1 else f"{run} values"
        return f"its windows are copied in runs of {values}, for {grid.matrix[0]} outputs only"
    return None
