"""Numbers to be met: squared error.

n: rows.  k: numbers a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import Targets
from sapp_cli.training.objectives.objective import means
from sapp_cli.training.objectives.supervised import Items


@dataclass(frozen=True)
class Regression:
    """The squared error, of several numbers a row their mean."""

    name: ClassVar[str] = "regression"
    metrics: ClassVar[Mapping[str, bool]] = {"mse": False, "mae": False}

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        ours, theirs = logits.flatten(1) if logits.dim() > 1 else logits[:, None], targets.float()
        theirs = theirs.flatten(1) if theirs.dim() > 1 else theirs[:, None]
        if ours.shape != theirs.shape:  # broadcasting would compare every row with every other
            problem = (
                "regression takes as many targets as the model gives numbers; of a batch the model gives "
                f"{tuple(logits.shape)}, the targets are {tuple(targets.shape)}"
            )
            raise SettingError([("objective.task", problem)])
        return Items(ours, theirs)

    def losses(self, items: Items) -> Tensor:
        return (items.logits - items.targets).square().mean(-1)

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (student - teacher).square().mean(-1)  # there is no distribution to soften

    def measures(self, items: Items) -> dict[str, Tensor]:
        return {"mse": self.losses(items), "mae": (items.logits - items.targets).abs().mean(-1)}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        """Any number will do."""
