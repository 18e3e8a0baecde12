"""`task: factory`: a loss and metrics of the user's own."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sapp_cli.errors import SappError, SettingError
from sapp_cli.inputs.rows import Batch, describe_batch
from sapp_cli.recipe.factory import failed
from sapp_cli.training.objectives.objective import LossResult, Sums, means

KEY = "objective.factory"


@dataclass(frozen=True)
class Custom:
    """What a callable (model, batch) returns: {"loss": scalar tensor, "metrics": {name: (sum, count)}}.

    The loss is the mean over the rows of the batch, or over "count" items if that is returned too. Without `directions`
    the loss is the only metric. If it `needs_teacher`, the callable is given the unpruned model as `teacher=`, in eval mode.
    """

    function: Callable[..., Any]
    place: str  # as the recipe names the callable, for messages
    directions: Mapping[str, bool]
    needs_teacher: bool = False
    name: ClassVar[str] = "factory"

    @property
    def metrics(self) -> Mapping[str, bool]:
        return self.directions or {"loss": False}

    def loss(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> LossResult:
        loss, count, _ = self._call(model, batch, teacher)
        return LossResult(loss, count, {})

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Sums:
        loss, count, metrics = self._call(model, batch, teacher)
        if not self.directions:
            return {"loss": (loss.double() * count, loss.new_tensor(count, dtype=torch.float64))}
        missing = [name for name in self.directions if name not in metrics]
        if missing:
            text = f"'{self.place}': returned no metric '{missing[0]}', named in objective.higher_is_better"
            raise SettingError([(KEY, text)])
        return {name: self._pair(name, metrics[name], loss) for name in self.directions}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return means(reduced)

    def _call(self, model: nn.Module, batch: Batch, teacher: nn.Module | None) -> tuple[Tensor, int, Mapping[str, Any]]:
        """Loss, its count and the metrics, or SettingError."""
        if teacher is not None and teacher is not model:
            teacher.eval()
        try:
            made = self.function(model, batch, **({"teacher": teacher} if self.needs_teacher else {}))
        except (SappError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if _is_raised_by_torch(error):  # out of memory, another process gone: not this function's doing
                raise
            raise failed(self.place, KEY, error, f"a batch holds {describe_batch(batch)}") from error
        loss = made.get("loss") if isinstance(made, Mapping) else None
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            text = (
                f'\'{self.place}\': has to return {{"loss": scalar tensor, "metrics": {{name: (sum, count)}}}}, not '
                f"{_describe(made)}"
            )
            raise SettingError([(KEY, text)])
        if torch.is_grad_enabled() and not loss.requires_grad:
            text = f"'{self.place}': its loss has no gradient; compute it from the model's output, without .item() or .detach()"
            raise SettingError([(KEY, text)])
        count = made.get("count", len(next(iter(batch.values()))))
        if not isinstance(count, int | float | Tensor):
            text = f"'{self.place}': 'count' has to be a number, what the loss is the mean of, not {count!r}"
            raise SettingError([(KEY, text)])
        return loss.reshape(()), int(count), made.get("metrics") or {}

    def _pair(self, name: str, value: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        try:
            total, count = (torch.as_tensor(number, dtype=torch.float64, device=like.device) for number in value)
        except (TypeError, ValueError) as error:
            text = f"'{self.place}': metric '{name}' has to be (sum, count), two numbers, not {value!r}"
            raise SettingError([(KEY, text)]) from error
        return total, count


def _is_raised_by_torch(error: Exception) -> bool:
    """True if the error comes out of torch's own Python code, and not out of a line of the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(Path(torch.__file__).parent)


def _describe(made: Any) -> str:
    if isinstance(made, Mapping):
        return f"a dict of {', '.join(f'{key}: {type(value).__name__}' for key, value in made.items()) or 'nothing'}"
    return f"a value of type {type(made).__name__}"
