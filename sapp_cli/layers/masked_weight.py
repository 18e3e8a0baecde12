"""The masked weight: a parametrization that turns what is trained into what the layer computes with.

out, in: a weight as a matrix.  R, C: block rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from sapp_cli.core.masked_linear import SeenGradient
from sapp_cli.core.masks import (
    as_matrix,
    from_matrix,
    scale_blocks,
    scatter_blocks,
    spread,
    with_strides_of,
)
from sapp_cli.core.workspace import Workspace
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.layers.rows import whole
from sapp_cli.methods import BlockState, Method


@dataclass(frozen=True, eq=False)
class KeptBlocks:
    """θ's kept blocks as a parameter of their own, which an optimizer moves in θ's place; no part of the model's state."""

    values: nn.Parameter  # (K, bc, br), as `gather_blocks` gives them


class MaskedWeight(nn.Module):
    """A torch parametrization: θ -> Ŵ = θ ⊙ spread(scale · keep), the same instance on every alias of a tied weight.

    `keep` is not a persistent buffer: the run state stores it, and checkpoints of the live model stay as they were.
    """

    keep: Tensor  # bool (R, C)
    available: Tensor  # bool (R, C): what a dense phase trains; all blocks, unless zero ones are locked
    logits: nn.Parameter | None  # fp32 (R, C)

    def __init__(
        self, method: Method, layout: MatrixLayout, grid: BlockGrid, sparsity: Fraction, available: Tensor | None = None
    ) -> None:
        super().__init__()
        self.method = method
        self.layout = layout
        self.grid = grid
        self.sparsity = sparsity
        self.density = float(1 - sparsity)  # exact fractions take their time
        self.encoded = False
        self.dense = False  # True once the layer is left dense: θ is the weight itself
        self.workspace = Workspace()
        self.seen = SeenGradient()
        self.streams_compiled = False  # what is compiled calls an operator for the product (`masked_linear_operator`)
        self.kept: KeptBlocks | None = None  # while a sparse phase trains those by themselves
        self.round_to: torch.dtype | None = None  # while evaluating what an export in this dtype would hold
        every = torch.ones(grid.size, dtype=torch.bool)
        self.register_buffer("available", every if available is None else available, persistent=False)
        self.register_buffer("keep", self.available.clone(), persistent=False)
        self.register_parameter("logits", nn.Parameter(torch.zeros(grid.size)) if method.has_logits else None)

    @property
    def state(self) -> BlockState:
        logits = None if self.logits is None else whole(self.logits)
        return BlockState(self.grid, self.keep, logits, density=self.density)

    def block_scale(self, matrix: Tensor) -> Tensor:
        """What every block of θ (out, in) is multiplied by, fp32 (R, C): the method's scale where kept, 0 elsewhere."""
        scale = self.method.scale(matrix, self.state)
        return self.keep.float() if scale is None else scale * self.keep

    def forward(self, theta: Tensor) -> Tensor:
        if self.dense:
            return theta if self.round_to is None else theta.to(self.round_to).to(theta.dtype)
        matrix = as_matrix(theta, self.layout)
        if self.kept is not None and self.round_to is None:  # while it is set, θ is up to date (`Pruner.rounded`)
            # Whoever asks for the whole weight gets it, and its gradient reaches the blocks.
            matrix = scatter_blocks(self.kept.values, self.keep, self.grid)
        matrix = scale_blocks(matrix, self.block_scale(matrix), self.grid, self.workspace)
        weight = with_strides_of(theta, from_matrix(matrix, self.layout))
        if self.round_to is not None:
            weight = weight.to(self.round_to)
        return weight.to(theta.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """θ from the checkpoint's weight; once, however many aliases are attached."""
        if self.encoded:
            return weight
        self.encoded = True
        matrix = self.method.encode(as_matrix(weight.detach(), self.layout), self.grid)
        return with_strides_of(weight, from_matrix(matrix, self.layout).to(weight.dtype))

    @torch.no_grad()
    def fold(self, theta: Tensor) -> Tensor:
        """The weight as it is exported, in fp32: pruned blocks are +0 (w·0 would give −0, or NaN for an infinite w).

        That of a layer that is left dense is θ as it stands.
        """
        if self.dense:
            return theta
        matrix = as_matrix(theta.float(), self.layout)
        matrix = scale_blocks(matrix, self.block_scale(matrix), self.grid)
        matrix = torch.where(spread(self.keep, self.grid), matrix, 0.0)
        return with_strides_of(theta, from_matrix(matrix, self.layout))
