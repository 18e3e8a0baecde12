"""SequentialAttention++: a softmax mask over a layer's blocks, trained with the weights (paper §3, Algorithm 1)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sapp_cli.core.masks import attention, attention_mask, block_norms
from sapp_cli.core.schedule import Moment, Phase, Span, Timetable, sequential_spans
from sapp_cli.methods.method import BlockState, Method

Beta = Annotated[float, Field(ge=0, lt=1)]


class SequentialAttention(Method):
    """Differentiable scores guide the search: Ŵ = W ⊙ A ⊙ keep with A = n·softmax(L)."""

    score: Literal["attention", "effective-norm", "norm"] | None = None
    """How blocks rank where `prune.score` does not say it: `attention` by A (the paper), `effective-norm` by A·‖W_b‖_F (what
    pruning removes), `norm` by ‖W_b‖_F (only for the paper's Fig. 2a). null: by Fisher information, as `prune.score` has it."""

    lr: Annotated[float, Field(gt=0)] | Literal["same"] | None = None
    """Learning rate of the logits at its peak. null: under Adam rates that add up to 3 over the run, each at most 0.03, which
    holds in runs of fewer than about 200 steps; under SGD three times the weights' rate and at most 1. `same`: the weights'
    rate (the paper)."""

    decay: Annotated[float, Field(ge=0)] | Literal["same"] = 0.0
    """Weight decay of the logits. `same`: the weights' (the paper: "helps", App. C.1)."""

    betas: tuple[Beta, Beta] | Literal["same"] = (0.9, 0.99)
    """Adam's moments for the logits; `same`: the weights'. SGD has none."""

    clip: bool = True
    """Clamp A to [density, 1/density] (App. C.1), density = 1 − the layer's target sparsity."""

    revive: bool = False
    """Lift the logits of pruned blocks to the mean of the kept ones where a dense phase begins, so they can return."""

    pruned: Literal["frozen", "literal"] = "frozen"
    """What training does to a pruned block. `frozen`: nothing, its weights and its logit return as they were. `literal`: all
    that the paper's formulas do, so weight decay, momentum and the softmax's normalizer still move them; not with `revive`
    and `prune.lock_zero_blocks`, and sparse phases compute with whole weights."""

    selection: Literal["after-update", "before-update"] = "after-update"
    """Which A the selection in the first step after a dense phase ranks by: that after the last update of the dense phase, or
    the one before it, with which its last forward pass was computed. Weights are those after the update in both cases."""

    @model_validator(mode="after")
    def _pruned_agrees_with_revive(self) -> SequentialAttention:
        if self.revive and self.pruned == "literal":
            raise ValueError("revive changes logits that pruned: literal leaves to training; take one of the two")
        return self

    def spans(self, timetable: Timetable) -> tuple[Span, ...]:
        return sequential_spans(timetable)

    @property
    def has_logits(self) -> bool:
        return True

    @property
    def freezes_pruned(self) -> bool:
        return self.pruned == "frozen"

    @property
    def selects_before_update(self) -> bool:
        return self.selection == "before-update"

    def scale(self, theta: Tensor, state: BlockState) -> Tensor | None:
        return self._mask(state)

    def kept_scale(self, blocks: Tensor, state: BlockState) -> Tensor | None:
        mask = self._mask(state)
        return None if mask is None else mask.masked_select(state.keep)

    def _mask(self, state: BlockState) -> Tensor | None:
        assert state.logits is not None, "a layer of sequential attention has logits"
        if state.density == 1:
            return None  # a target of 0 switches the mask off
        # No gradient where pruned: through the softmax's normalizer alone Adam moved these more than the kept ones.
        trained = state.keep if self.freezes_pruned else None
        return attention_mask(state.logits, state.density if self.clip else None, trained)

    def size(self, theta: Tensor, state: BlockState) -> Tensor:
        assert state.logits is not None, "a layer of sequential attention has logits"
        if self.score == "norm":
            return block_norms(theta, state.grid)
        scores = attention(state.logits)
        # In a schedule without a dense start the logits are untrained at the first selection, and A says nothing.
        if self.score == "attention" and bool((scores != scores.flatten()[0]).any()):
            return scores
        return scores * block_norms(theta, state.grid)

    @torch.no_grad()
    def begin(self, moment: Moment, theta: Tensor, state: BlockState, before: Tensor) -> None:
        if moment.phase is Phase.DENSE and self.revive and state.logits is not None and not before.all():
            kept_mean = state.logits[before].mean()
            state.logits[~before] = torch.maximum(state.logits[~before], kept_mean)
