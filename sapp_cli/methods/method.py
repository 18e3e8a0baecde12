"""What a pruning method answers; the state it is asked about is passed in.

A method is a frozen set of settings with pure functions. It never decides when: phases come from `spans`, the counts
from the schedule, the choice from core.selection. It says how a trained parameter θ becomes the layer's weight
Ŵ = θ ⊙ spread(scale · keep), how blocks rank, and what happens to θ and the logits where a phase begins.

R, C: block rows and columns of a layer's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sapp_cli.core.masks import block_norms, block_product_squares, scatter_blocks
from sapp_cli.core.schedule import Moment, Span, Timetable
from sapp_cli.grid import BlockGrid


@dataclass
class BlockState:
    """What is known of one layer's blocks besides θ itself."""

    grid: BlockGrid
    keep: Tensor  # bool (R, C)
    logits: Tensor | None  # fp32 (R, C), for methods that have them
    density: float  # 1 − the layer's target sparsity
    fisher: Tensor | None = None  # fp32 (R, C), the running mean of Σ_b (dL/dŴ ⊙ Ŵ)², where blocks rank by it


class Method(BaseModel):
    """The interface, and what magnitude-like methods answer to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        """The phases this method runs through in the given timetable."""
        raise NotImplementedError

    @property
    def has_logits(self) -> bool:
        """True if each block gets a trained logit."""
        return False

    @property
    def freezes_pruned(self) -> bool:
        """True if weights and logits of a pruned block stay as they were when it was pruned, whatever the optimizer does."""
        return True

    @property
    def selects_before_update(self) -> bool:
        """True if the selection after a dense phase ranks by the logits before the last update of that phase."""
        return False

    def encode(self, weight: Tensor, grid: BlockGrid) -> Tensor:
        """The parameter θ (out, in) that stands for the checkpoint's weight (out, in) without changing its function."""
        return weight

    def scale(self, theta: Tensor, state: BlockState) -> Tensor | None:
        """What each block of θ is multiplied by, fp32 (R, C), differentiable; None means 1. `keep` comes on top."""
        return None

    def kept_scale(self, blocks: Tensor, state: BlockState) -> Tensor | None:
        """The same of the kept blocks by themselves: θ's (K, bc, br), as `gather_blocks` gives them -> (K,).

        Right for every method; one that needs not look at a whole weight for it says so.
        """
        if type(self).scale is Method.scale:
            return None
        scale = self.scale(scatter_blocks(blocks, state.keep, state.grid), state)
        return None if scale is None else scale[state.keep]

    def scores(self, theta: Tensor, state: BlockState) -> Tensor:
        """How the blocks rank, fp32 (R, C), greater stays: by Fisher information if it was gathered, else as `size` has it."""
        return self.size(theta, state) if state.fisher is None else state.fisher.sqrt()

    def size(self, theta: Tensor, state: BlockState) -> Tensor:
        """How the blocks rank without gradients, fp32 (R, C); here ‖θ_b‖_F."""
        return block_norms(theta, state.grid)

    def sensitivity(self, gradient: Tensor, theta: Tensor, state: BlockState) -> Tensor:
        """Σ_b (dL/dŴ ⊙ Ŵ)² of every block, fp32 (R, C), from dL/dθ; 0 for blocks whose scale is 0.

        Where the scale does not depend on θ, dL/dŴ ⊙ Ŵ is dL/dθ ⊙ θ: it cancels out.
        """
        return block_product_squares(gradient, theta, state.grid)

    @torch.no_grad()
    def begin(self, moment: Moment, theta: Tensor, state: BlockState, before: Tensor) -> None:
        """Change θ (out, in) or the logits in place where a phase begins.

        `state.keep` is the phase's own mask already, `before` (R, C) the one of the phase that ended.
        """
