"""Which rows make up the batch of each step: a pure function of the seed and the batch's number.

Nothing is counted while the data is read, so a run can start at any step, and every process knows the others' share.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sapp_cli.errors import DataError, SourceError
from sapp_cli.inputs.data import Batch, DataSets
from sapp_cli.inputs.rows import StreamedRows

RAISED = re.compile(r"^sapp_cli\.errors\.(DataError|SourceError): (.*)", re.MULTILINE | re.DOTALL)
"""The last line of a traceback that ends in one of these, and all that follows."""


@dataclass(frozen=True)
class BatchPlan:
    """Shuffled epochs of `rows` rows in batches of `size` rows a process.

    The last, smaller batch of an epoch is dropped; a data set smaller than one batch makes one batch of all its rows.
    """

    rows: int
    size: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.rows // (self.size * self.world))

    def epoch(self, epoch: int, start: int = 0) -> list[list[int]]:
        """The rows of every batch of an epoch from batch `start` on, for this process."""
        order = self._order(epoch)
        return [self._cut(order, number) for number in range(start, self.batches_per_epoch)]

    def rows_of(self, number: int) -> list[int]:
        """The rows of batch `number` of the run, for this process."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._cut(self._order(epoch), place)

    def places(self, number: int) -> range:
        """Where the rows of batch `number` stand in the order of an epoch, for this process."""
        start = number * self.size * self.world
        return range(start + self.rank, min(start + self.size * self.world, self.rows), self.world)

    def _order(self, epoch: int) -> Tensor:
        # Mixed, because the generator looks at 32 bits only: neither sums nor shifts keep seed and epoch apart there.
        mixed = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
        return torch.randperm(self.rows, generator=generator)

    def _cut(self, order: Tensor, number: int) -> list[int]:
        start = number * self.size * self.world
        whole = order[start : start + self.size * self.world]
        return cast("list[int]", whole[self.rank :: self.world].tolist())


def training_batches(data: DataSets, plan: BatchPlan, workers: int, start: int = 0) -> Iterator[Batch]:
    """The batches from number `start` on, without end."""
    first_epoch, first = divmod(start, plan.batches_per_epoch)
    for epoch in itertools.count(first_epoch):
        data.set_epoch(epoch)
        if isinstance(data.train, StreamedRows):
            batches = _StreamedBatches(data.train, plan, epoch, first if epoch == first_epoch else 0)
            with worker_errors():
                yield from DataLoader(batches, batch_size=None, num_workers=workers)
            continue
        loader: DataLoader[Any] = DataLoader(
            data.train,
            batch_sampler=plan.epoch(epoch, first if epoch == first_epoch else 0),
            collate_fn=data.collate,
            num_workers=workers,
            # Of its own: making a loader's iterator draws from the global generator, which would move dropout's masks.
            generator=torch.Generator().manual_seed(plan.seed),
        )
        with worker_errors():
            yield from loader


@contextmanager
def worker_errors() -> Iterator[None]:
    """An error of ours that a worker process raised, as it was: torch has put the worker's whole traceback into its text."""
    try:
        yield
    except (DataError, RuntimeError) as error:
        raised = RAISED.search(str(error))
        if raised is None:
            raise
        kind, text = raised[1], raised[2].strip()
        if kind == DataError.__name__:
            raise DataError(text) from error
        key, _, problem = text.partition(": ")
        raise SourceError([(key, problem)]) from error


class _StreamedBatches(IterableDataset[Batch]):
    """The batches of an epoch from number `start` on; of several workers each makes every so many-th."""

    def __init__(self, rows: StreamedRows, plan: BatchPlan, epoch: int, start: int) -> None:
        self._rows = rows
        self._plan = plan
        self._epoch = epoch
        self._start = start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (self._start, 1) if worker is None else (self._start + worker.id, worker.num_workers)
        for number in range(first, self._plan.batches_per_epoch, step):
            yield self._rows.take(self._plan.places(number), (self._plan.seed, self._epoch))


def evaluation_batches(
    data: DataSets, size: int, rows: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """`rows` evenly spaced validation rows (None: all) in batches of at most `size`; each process its share.

    Evenly spaced, because files are often sorted by class.
    """
    streamed = data.validation if isinstance(data.validation, StreamedRows) else None
    for share in evaluation_shares(data, size, rows, rank, world):
        yield streamed.take(share, None) if streamed else data.collate([data.validation[index] for index in share])


def evaluation_shares(data: DataSets, size: int, rows: int | None, rank: int, world: int) -> Iterator[list[int]]:
    """The row numbers of those batches; the first process has as many batches as any."""
    available = len(data.validation)  # type: ignore[arg-type]
    count = available if rows is None else min(rows, available)
    mine = [index * available // count for index in range(count)][rank::world]
    for start in range(0, len(mine), size):
        yield mine[start : start + size]
