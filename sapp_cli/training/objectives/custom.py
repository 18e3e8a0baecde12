"""`task: factory`: a loss and metrics of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sapp_cli.errors import UsageError
from sapp_cli.inputs.rows import Batch
from sapp_cli.training.objectives.objective import LossResult, Sums, means


@dataclass(frozen=True)
class Custom:
    """What a callable (model, batch) returns: {"loss": scalar tensor, "metrics": {name: (sum, count)}}.

    The loss is the mean over the rows of the batch, or over "count" items if that is returned too. Without `directions`
    the loss is the only metric.
    """

    function: Callable[[nn.Module, Batch], Any]
    place: str  # as the recipe names the callable, for messages
    directions: Mapping[str, bool]
    name: ClassVar[str] = "factory"
    needs_teacher: ClassVar[bool] = False

    @property
    def metrics(self) -> Mapping[str, bool]:
        return self.directions or {"loss": False}

    def loss(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> LossResult:
        loss, count, _ = self._call(model, batch)
        return LossResult(loss, count, {})

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Sums:
        loss, count, metrics = self._call(model, batch)
        if not self.directions:
            return {"loss": (loss.double() * count, loss.new_tensor(count, dtype=torch.float64))}
        missing = [name for name in self.directions if name not in metrics]
        if missing:
            raise UsageError(
                f"objective.factory {self.place} returned no metric '{missing[0]}', named in objective.higher_is_better"
            )
        return {name: self._pair(name, metrics[name], loss) for name in self.directions}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def _call(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int, Mapping[str, Any]]:
        """Loss, its count and the metrics, or UsageError."""
        made = self.function(model, batch)
        loss = made.get("loss") if isinstance(made, Mapping) else None
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError(
                f'objective.factory {self.place} has to return {{"loss": scalar tensor, "metrics": {{name: (sum, '
                f"count)}}}}, not {_describe(made)}"
            )
        count = made.get("count", len(next(iter(batch.values()))))
        return loss.reshape(()), int(count), made.get("metrics") or {}

    def _pair(self, name: str, value: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        try:
            total, count = (torch.as_tensor(number, dtype=torch.float64, device=like.device) for number in value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"objective.factory {self.place}: metric '{name}' has to be (sum, count), two numbers, not {value!r}"
            ) from error
        return total, count


def _describe(made: Any) -> str:
    if isinstance(made, Mapping):
        return f"a dict of {', '.join(f'{key}: {type(value).__name__}' for key, value in made.items()) or 'nothing'}"
    return type(made).__name__
