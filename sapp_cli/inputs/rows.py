"""What every source of data ends in: rows that are dicts of tensors, and a function that makes a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

Row = dict[str, Tensor]
Batch = dict[str, Tensor]
Collate = Callable[[list[Row]], Batch]

TARGETS = "targets"
"""The key of a row that holds what is to be predicted; every other key is an input of the model."""
IGNORED = -100
"""The target of a token that is not predicted: padding, and all but the masked ones of masked-lm."""


@runtime_checkable
class StreamedRows(Protocol):
    """Rows that are better read one after another than each by itself; a Dataset with one method more."""

    def take(self, places: Sequence[int], order: tuple[int, int] | None) -> Batch:
        """The rows at these ascending places of a shuffled epoch, `order` (seed, epoch), or as they lie, None."""


@dataclass(frozen=True)
class DataSets:
    """The rows a run trains on, those it is judged by, and how rows become a batch."""

    train: Dataset[Row]  # map-style: len() and [i]
    validation: Dataset[Row]
    collate: Collate
    description: str  # a line or two for the log and the model card
    notes: tuple[str, ...] = ()  # what was decided in reading them, such as the numbers of names; a line each

    def set_epoch(self, epoch: int) -> None:
        """Tell the training rows which pass over them begins, counted from 0; random masks depend on it.

        Call it before the loader's iterator is made: worker processes get a copy of the rows as they are then.
        """
        announce = getattr(self.train, "set_epoch", None)
        if announce is not None:
            announce(epoch)


@dataclass(frozen=True)
class Targets:
    """Every target of a dataset at once, for what is checked before the first step."""

    values: Tensor  # (n, …)
    numbers: Sequence[int]  # (n,) the rows' places in their files, from 0
    origin: str  # where the rows come from, for messages


def rows_in(dataset: Dataset[Any]) -> int:
    """len(dataset); torch leaves the method out of its type."""
    return len(dataset)  # type: ignore[arg-type]


def describe_batch(batch: Batch) -> str:
    """`inputs (2, 64) float32, targets (2,) int64`, for messages."""
    return ", ".join(
        f"{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in batch.items()
    )


def stack_rows(rows: list[Row]) -> Batch:
    """Rows of equal shapes -> (rows, …) for every key."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
