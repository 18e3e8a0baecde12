"""What the training loop asks an objective; how tasks answer is in their own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from sapp_cli.inputs.rows import Batch

Sums = dict[str, tuple[Tensor, Tensor]]
"""{name: (sum, count)}, fp64 numbers, or two vectors of one length, on the batch's device; added up over batches and processes.
"""


@dataclass(frozen=True)
class LossResult:
    """The loss of one batch, and what it is the mean of."""

    loss: Tensor  # fp32 number to call backward() on
    count: int  # rows, or predicted tokens: the weight of this mean among those of other batches and processes
    parts: dict[str, Tensor]  # the terms the loss is made of, unweighted, without gradient


class Objective(Protocol):
    """What is minimized, and the metrics that are reported."""

    @property
    def name(self) -> str:
        """The task, as the recipe names it."""

    @property
    def metrics(self) -> Mapping[str, bool]:
        """{metric: greater is better}; the first is the one a run is judged by."""

    @property
    def needs_teacher(self) -> bool:
        """True if `loss` or `evaluate` asks the checkpoint that came in, unpruned."""

    def loss(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> LossResult:
        """The mean loss of a batch, in whatever mode the model is."""

    def evaluate(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Sums:
        """The sums behind the metrics, without gradients."""

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """The metrics, from the sums of all batches and processes."""


def means(reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Sum ÷ count of each; NaN where nothing was counted."""
    return {name: total / count if count else float("nan") for name, (total, count) in reduced.items()}


def mean(values: Tensor) -> Tensor:
    """The mean in fp32 of the values of a vector; 0, with a gradient of 0, where there are none."""
    return values.float().sum() / max(1, values.numel())


def sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    """A vector as an entry of Sums."""
    total = values.double().sum()
    return total, total.new_tensor(values.numel())
