"""Embeddings like those of the checkpoint that came in; no labels needed.

B: rows of a batch.  D: numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import Batch
from sapp_cli.training.objectives.distillation import hidden_distance
from sapp_cli.training.objectives.forward import Inputs, hidden_states_of, pooled
from sapp_cli.training.objectives.objective import LossResult, Sums, mean, means, sum_and_count


@dataclass(frozen=True)
class EmbeddingDistillation:
    """1 − cosine between the pooled embeddings of model and teacher; the metric of the dense checkpoint itself is 1."""

    inputs: Inputs
    pooling: str
    hidden_states: float  # weight of the distance of the hidden states
    name: ClassVar[str] = "embedding-distillation"
    metrics: ClassVar[Mapping[str, bool]] = {"cosine": True}
    needs_teacher: ClassVar[bool] = True

    def loss(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> LossResult:
        options = {"output_hidden_states": True} if self.hidden_states > 0 else {}
        output = self.inputs.call(model, batch, **options)
        answer = self.inputs.ask(teacher, batch, **options)
        cosines = self._cosines(output, answer, batch)
        loss = 1 - mean(cosines)
        parts = {"task": loss.detach()}
        if self.hidden_states > 0:
            distance = hidden_distance(hidden_states_of(output), hidden_states_of(answer), batch)
            parts["hidden_states"] = distance.detach()
            loss = loss + self.hidden_states * distance
        return LossResult(loss, cosines.numel(), parts)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Sums:
        output, answer = self.inputs.call(model, batch), self.inputs.ask(teacher, batch)
        return {"cosine": sum_and_count(self._cosines(output, answer, batch))}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def _cosines(self, output: Any, answer: Any, batch: Batch) -> Tensor:
        """(B,)."""
        ours, theirs = (pooled(each, batch, self.pooling) for each in (output, answer))  # (B, D)
        if ours.shape != theirs.shape:
            problem = (
                f"the teacher's embeddings have {theirs.shape[-1]} numbers, the model's {ours.shape[-1]}; take a teacher "
                "of the same width"
            )
            raise SettingError([("objective.distill.teacher", problem)])
        return F.cosine_similarity(ours, theirs, dim=-1)
