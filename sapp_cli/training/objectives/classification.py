"""One class of several a row: cross-entropy and accuracy.

n: rows.  k: classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sapp_cli.errors import DataError, SettingError
from sapp_cli.inputs.rows import Targets
from sapp_cli.training.objectives.distillation import kl_divergence
from sapp_cli.training.objectives.objective import means
from sapp_cli.training.objectives.supervised import Items


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of logits (n, k) and labels (n,). The training loss is smoothed, the metric `loss` is not."""

    label_smoothing: float = 0.0
    name: ClassVar[str] = "classification"
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "loss": False}

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        if logits.dim() != 2 or targets.shape != logits.shape[:1]:
            problem = (
                "classification takes logits (rows, classes) and one label a row, not "
                f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            )
            raise SettingError([("objective.task", problem)])
        return Items(logits, targets)

    def losses(self, items: Items) -> Tensor:
        return F.cross_entropy(items.logits, items.targets, label_smoothing=self.label_smoothing, reduction="none")

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return kl_divergence(student, teacher, temperature)

    def measures(self, items: Items) -> dict[str, Tensor]:
        return {
            "accuracy": items.logits.argmax(-1) == items.targets,
            "loss": F.cross_entropy(items.logits, items.targets, reduction="none"),
        }

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        classes = logits.shape[-1]
        outside = ((targets.values < 0) | (targets.values >= classes)).nonzero().flatten()
        if outside.numel():
            first = int(outside[0])
            raise DataError(
                f"{targets.origin}: row {targets.numbers[first]} (counted from 0) has label "
                f"{int(targets.values[first])}, but the model has {classes} classes, 0 to {classes - 1}"
            )
