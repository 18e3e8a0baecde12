"""Yes or no: log loss of one logit.

n: rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sapp_cli.errors import UsageError
from sapp_cli.inputs.rows import Targets
from sapp_cli.training.objectives.distillation import binary_divergence
from sapp_cli.training.objectives.objective import means
from sapp_cli.training.objectives.supervised import Items


@dataclass(frozen=True)
class Binary:
    """Log loss of the probability σ(z) and targets from 0 to 1. Of two logits, z is the second less the first."""

    name: ClassVar[str] = "binary"
    metrics: ClassVar[Mapping[str, bool]] = {"logloss": False, "accuracy": True}

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        rows = targets.numel()
        shape = tuple(logits.shape)
        if tuple(targets.shape) not in ((rows,), (rows, 1)) or shape not in ((rows,), (rows, 1), (rows, 2)):
            raise UsageError(
                f"objective.task binary takes one logit or two and one target a row, not {shape} and "
                f"{tuple(targets.shape)}"
            )
        logit = (
            logits[:, 1] - logits[:, 0] if shape == (rows, 2) else logits.reshape(rows)
        )  # softmax((a, b))₁ = σ(b − a)
        return Items(logit, targets.reshape(rows).float())

    def losses(self, items: Items) -> Tensor:
        return F.binary_cross_entropy_with_logits(items.logits, items.targets, reduction="none")

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return binary_divergence(student, teacher, temperature)

    def measures(self, items: Items) -> dict[str, Tensor]:
        return {"logloss": self.losses(items), "accuracy": (items.logits > 0) == (items.targets > 0.5)}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        """They were checked when they were read."""
