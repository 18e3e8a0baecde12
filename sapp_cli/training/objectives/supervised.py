"""Tasks with targets: the task's own loss, and distillation from the checkpoint that came in beside it.

n: rows, or tokens of a language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import Batch, Targets
from sapp_cli.recipe.schema import DistillSection
from sapp_cli.training.objectives.distillation import hidden_distance
from sapp_cli.training.objectives.forward import Inputs, hidden_states_of, logits_of, targets_of
from sapp_cli.training.objectives.objective import LossResult, Sums, mean, sum_and_count


@dataclass(frozen=True)
class Items:
    """Logits and targets side by side, one entry for every row or token."""

    logits: Tensor  # (n,) or (n, k)
    targets: Tensor  # (n,) or (n, k)
    counted: Tensor | None = None  # bool (n,); None: all

    def select(self, values: Tensor) -> Tensor:
        """Those of (n,) values that count."""
        return values if self.counted is None else values[self.counted]


class Task(Protocol):
    """What tells one task from another; every answer is a vector (n,), one number an item."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> Mapping[str, bool]: ...

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        """The model's logits and the batch's targets lined up. Raises SettingError for shapes that do not go together."""

    def losses(self, items: Items) -> Tensor:
        """What is minimized."""

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far two `Items.logits` are apart."""

    def measures(self, items: Items) -> dict[str, Tensor]:
        """What the metrics are the means of."""

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """The metrics, from the sums and counts of `measures`."""

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        """Raise DataError for targets the logits (of any batch) cannot meet."""


@runtime_checkable
class WithHistograms(Protocol):
    """A task with a metric that is no mean of anything an item has."""

    def histograms(self, items: Items) -> Sums:
        """{metric: two vectors of equal length}, added up over batches and processes before `finish` gets them."""


@dataclass(frozen=True)
class Supervised:
    """loss = (1 − weight)·task + weight·distillation + hidden_states·distance of the hidden states."""

    task: Task
    inputs: Inputs
    distill: DistillSection

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def metrics(self) -> Mapping[str, bool]:
        return self.task.metrics

    @property
    def needs_teacher(self) -> bool:
        return self.distill.weight > 0 or self.distill.hidden_states > 0

    def loss(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> LossResult:
        targets = targets_of(batch)
        options = {"output_hidden_states": True} if self.distill.hidden_states > 0 else {}
        output = self.inputs.call(model, batch, **options)
        items = self.task.items(logits_of(output), targets)
        losses = items.select(self.task.losses(items))
        loss = mean(losses)
        parts = {"task": loss}
        if self.needs_teacher:
            answer = self.inputs.ask(teacher, batch, **options)
            loss = self._blend(parts, output, answer, items, batch)
        return LossResult(loss, losses.numel(), {name: part.detach() for name, part in parts.items()})

    def _blend(self, parts: dict[str, Tensor], output: Any, answer: Any, items: Items, batch: Batch) -> Tensor:
        """The whole loss, from the task's in `parts`, where the other terms are put too."""
        weight, loss = self.distill.weight, parts["task"]
        if weight > 0:
            theirs = self.task.items(logits_of(answer), targets_of(batch)).logits
            if theirs.shape != items.logits.shape:
                problem = (
                    f"the teacher gives logits {tuple(theirs.shape)}, the model {tuple(items.logits.shape)}; take a "
                    "teacher with the same classes"
                )
                raise SettingError([("objective.distill.teacher", problem)])
            distances = self.task.distances(items.logits, theirs, self.distill.temperature)
            parts["distill"] = mean(items.select(distances))
            loss = (1 - weight) * loss + weight * parts["distill"]
        if self.distill.hidden_states > 0:
            parts["hidden_states"] = hidden_distance(hidden_states_of(output), hidden_states_of(answer), batch)
            loss = loss + self.distill.hidden_states * parts["hidden_states"]
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Sums:
        items = self.task.items(self.logits(model, batch), targets_of(batch))
        sums = {name: sum_and_count(items.select(values)) for name, values in self.task.measures(items).items()}
        return {**sums, **(self.task.histograms(items) if isinstance(self.task, WithHistograms) else {})}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says of a batch."""
        return logits_of(self.inputs.call(model, batch))

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return self.task.finish(reduced)
