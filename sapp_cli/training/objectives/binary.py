"""Yes or no: log loss of one logit, or of one for each of several labels.

n: rows.  k: labels of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import Targets
from sapp_cli.training.objectives.distillation import binary_divergence
from sapp_cli.training.objectives.objective import Sums, means
from sapp_cli.training.objectives.supervised import Items

BINS = 1 << 14
LIMIT = 16.0  # logits beyond it, of probabilities within 1e-7 of 0 or 1, are all one; a bin is 0.002 wide


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The share of pairs (a positive, a negative) in which the positive is in the higher bin; half of it in the same bin.

    The area under the ROC curve, but for pairs whose logits fall into one bin. 0.5 where there is no pair.
    """
    pairs = sum(positives) * sum(negatives)
    below = ahead = 0.0
    for more, less in zip(positives, negatives, strict=True):
        ahead += more * (below + less / 2)
        below += less
    return ahead / pairs if pairs else 0.5


@dataclass(frozen=True)
class Binary:
    """Log loss of the probability σ(z) and targets from 0 to 1. Of two logits and one target, z is the second less the first.

    Of several targets a row, as many logits are questions of their own: loss and accuracy of a row are the means of its
    labels, and the AUC is that of all rows and labels together.
    """

    name: ClassVar[str] = "binary"
    metrics: ClassVar[Mapping[str, bool]] = {"logloss": False, "auc": True, "accuracy": True}

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        if targets.dim() == 2 and targets.shape[1] > 1 and targets.shape == logits.shape:
            return Items(logits, targets.float())  # (n, k)
        rows, shape = len(targets), tuple(logits.shape)
        if tuple(targets.shape) not in ((rows,), (rows, 1)) or shape not in ((rows,), (rows, 1), (rows, 2)):
            problem = (
                "binary takes one logit or two and one target a row, or as many of each, not "
                f"{shape} and {tuple(targets.shape)}"
            )
            raise SettingError([("objective.task", problem)])
        logit = (
            logits[:, 1] - logits[:, 0] if shape == (rows, 2) else logits.reshape(rows)
        )  # softmax((a, b))₁ = σ(b − a)
        return Items(logit, targets.reshape(rows).float())

    def losses(self, items: Items) -> Tensor:
        return _of_rows(F.binary_cross_entropy_with_logits(items.logits, items.targets, reduction="none"))

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return _of_rows(binary_divergence(student, teacher, temperature))

    def measures(self, items: Items) -> dict[str, Tensor]:
        right = (items.logits > 0) == (items.targets > 0.5)
        return {"logloss": self.losses(items), "accuracy": _of_rows(right.float())}

    def histograms(self, items: Items) -> Sums:
        """{"auc": how many of the targets 1, and of the targets 0, have a logit in each bin}."""
        logits = items.logits.flatten().cpu().nan_to_num(0.0).clamp(-LIMIT, LIMIT)  # CUDA counts in no fixed order
        bins = ((logits + LIMIT) * (BINS - 1) / (2 * LIMIT)).round().long()
        targets = items.targets.flatten().cpu().double()
        return {"auc": (torch.bincount(bins, targets, BINS), torch.bincount(bins, 1 - targets, BINS))}

    def finish(self, reduced: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
        positives, negatives = reduced["auc"]
        found = means({name: pair for name, pair in reduced.items() if name != "auc"})
        found["auc"] = area_under_curve(positives, negatives)
        return {name: found[name] for name in self.metrics}

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        """They were checked when they were read."""


def _of_rows(values: Tensor) -> Tensor:
    """(n,): the mean over the labels of each row, of (n,) or (n, k)."""
    return values if values.dim() == 1 else values.mean(-1)
