"""The sizes of tile that the CUDA kernel is tried with: few, for each takes about a second to compile, once on a machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAST_SIDE = 16
"""Of a tile: the least side of a tensor core's product in every version of Triton."""
MOST_OUTPUTS = 128
MOST_OUTPUTS_FP32 = 64
"""Without tensor cores the sums of a wider tile do not fit the registers."""


@dataclass(frozen=True)
class Tile:
    """How one program computes: so many rows of x times so many outputs of a block row, so many columns at a time."""

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int
    """How far loads run ahead: two stages for one tile of x under way, for the number of its column has to come first."""

    @property
    def name(self) -> str:
        """As in "triton-64x16x64-4w-5s"."""
        return f"triton-{self.rows}x{self.outputs}x{self.columns}-{self.warps}w-{self.stages}s"


def tiles(rows: int, block: tuple[int, int], dtype: torch.dtype, *, tf32: bool = False) -> tuple[Tile, ...]:
    """What is worth a measurement for about so many rows of x.

    With few rows of x the weights are all there is to read: narrow tiles give every multiprocessor a share of them. With many,
    what counts is that the tensor cores are fed; how often x is read depends on the height of the blocks alone.
    """
    tensor_cores = dtype != torch.float32 or tf32
    height = max(LEAST_SIDE, 1 << (block[0] - 1).bit_length())
    outputs = min(height, MOST_OUTPUTS if tensor_cores else MOST_OUTPUTS_FP32)
    columns = 32 if dtype == torch.float32 else 64  # 128 bytes
    if rows <= 16:
        found = [
            Tile(16, LEAST_SIDE, columns, 2, 7),
            Tile(16, LEAST_SIDE, 2 * columns, 4, 5),
            Tile(16, min(outputs, 64), columns, 4, 7),
        ]
    elif not tensor_cores:
        found = [
            Tile(32, outputs, columns, 4, 5),
            Tile(64, outputs, columns, 4, 5),
            Tile(64, outputs, columns // 2, 4, 7),
            Tile(128, outputs, columns // 2, 8, 7),
        ]
    elif rows <= 256:
        found = [
            Tile(16, outputs, columns, 4, 7),
            Tile(32, outputs, columns, 4, 5),
            Tile(64, outputs, columns, 4, 5),
            Tile(64, outputs, columns // 2, 4, 7),
        ]
    else:
        warps = 8 if outputs > 64 else 4
        found = [
            Tile(64, outputs, columns, 4, 5),
            Tile(128, outputs, columns, warps, 5),
            Tile(128, outputs, columns // 2, warps, 7),
            Tile(256, outputs, columns // 2, 8, 5) if outputs <= 32 else Tile(128, outputs, columns, 8, 7),
        ]
    return tuple(tile for tile in found if tile.rows <= max(LEAST_SIDE, rows))
