"""A block-sparse weight on a GPU, and the call of the Triton kernel with tiles of one size.

Triton comes with a CUDA torch; without it this module cannot be imported, and nothing else needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime import triton_kernel
from sapp_cli.runtime.gpu import multiplies_bf16, on_device, tf32_allowed
from sapp_cli.runtime.triton_tiles import Tile

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class TritonWeight:
    """What the kernel is given, whatever its tiles. The indices are private copies of checked ones."""

    grid: BlockGrid
    values: Tensor  # (K, bc, br), contiguous
    crow: Tensor  # int32 (R + 1,)
    col: Tensor  # int32 (K,)
    order: Tensor  # int32 (R,): block rows, those with most blocks first
    bias: Tensor  # fp32 (out,), zeros where there is none

    @classmethod
    def of(cls, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid) -> TritonWeight:
        """Of values (K, br, bc) of a dtype in DTYPES, with which it shares memory if their columns come first there."""
        assert values.dtype in DTYPES, f"no kernel for {values.dtype}"
        # Long block rows begin first, or the last of them would be computed when everybody else has finished.
        order = torch.argsort(crow.diff(), descending=True, stable=True).to(torch.int32)
        filled = values.new_zeros(grid.matrix[0], dtype=torch.float32) if bias is None else bias.detach().float()
        return cls(grid, values.detach().transpose(1, 2).contiguous(), crow, col, order, filled)


class TritonProduct:
    """y = x Wᵀ + bias on a GPU, in tiles of one size.

    Sums are fp32. Products of float32 are float32 ones as well, and not TF32 with its 10 bits of mantissa, which is Triton's
    default: a layer must not lose digits by its choice of way. Where the user lets torch multiply as TF32, this does so, too.
    Blocks that are not kept are not looked at: an infinity or NaN in x that only meets those leaves no trace.
    """

    def __init__(self, weight: TritonWeight, tile: Tile) -> None:
        grid, dtype, device = weight.grid, weight.values.dtype, weight.values.device
        self.weight, self.tile = weight, tile
        br, bc = grid.block
        self._block_rows = grid.size[0]
        self._programs = grid.size[0] * -(-br // tile.outputs)  # for one tile of rows
        self._is_float32 = dtype == torch.float32
        self._constants = {
            "BLOCK_ROWS": br,
            "BLOCK_COLUMNS": bc,
            "TILE_ROWS": tile.rows,
            "TILE_OUTPUTS": tile.outputs,
            "TILE_COLUMNS": tile.columns,
            "CONTIGUOUS": min(bc & -bc, tile.columns),
            "RAGGED": grid.matrix[1] % bc != 0,
            "WIDEN": dtype == torch.bfloat16 and not multiplies_bf16(device),
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

    def __call__(self, x: Tensor) -> Tensor:
        """(M, in) -> (M, out), in the dtype of the weight."""
        weight, (out, columns) = self.weight, self.weight.grid.matrix
        assert x.dtype is weight.values.dtype and x.device == weight.values.device, (
            f"x is {x.dtype} on {x.device}, the weight {weight.values.dtype} on {weight.values.device}"
        )
        rows = len(x)
        y = x.new_empty(rows, out)
        if rows == 0 or out == 0:
            return y
        if x.stride(1) != 1:
            x = x.contiguous()
        precision = "tf32" if self._is_float32 and tf32_allowed() else "ieee"
        programs = -(-rows // self.tile.rows) * self._programs
        with on_device(x):
            triton_kernel.block_sparse_product[(programs,)](
                x,
                weight.values,
                weight.crow,
                weight.col,
                weight.order,
                weight.bias,
                y,
                rows,
                self._block_rows,
                x.stride(0),
                columns,
                out,
                PRECISION=precision,
                **self._constants,
            )
        return y
