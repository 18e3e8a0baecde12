"""Metrics of a model over validation rows, reduced by count over batches and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.errors import SappError, UsageError
from sapp_cli.inputs.data import Batch, DataSets
from sapp_cli.training.batches import evaluation_batches, evaluation_shares
from sapp_cli.training.objectives import Objective
from sapp_cli.training.processes import gather
from sapp_cli.training.sharding import is_sharded
from sapp_cli.training.user_code import UserCode


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    data: DataSets,
    batch_size: int,
    accelerator: Accelerator,
    *,
    teacher: nn.Module | None = None,
    rows: int | None = None,
    alone: bool = False,
    doing: str = "evaluation",
    kind: type[SappError] = UsageError,
) -> dict[str, float]:
    """{metric: value} over `rows` evenly spaced validation rows (None: all), the model in eval mode.

    Several processes share the rows and all get the metrics; with `alone` this one takes all rows and asks no other.
    An error of the user's model or metrics is one of `kind`, which begins with `doing`.

    Leaves the random state of torch as it was: an evaluation must not change the steps after it.
    """
    totals: dict[str, torch.Tensor] = {}
    with evaluation_mode(model), torch.random.fork_rng(devices=_cuda_devices(accelerator)):
        rank, world = (0, 1) if alone else (accelerator.process_index, accelerator.num_processes)
        batches = evaluation_batches(data, batch_size, rows, rank, world)
        shares = list(evaluation_shares(data, batch_size, rows, rank, world))
        guarded = UserCode(model, objective, shares.__getitem__, kind)
        each = _in_step(batches, data, batch_size, rows, world) if is_sharded(model) else _all(batches)
        for number, (batch, counts) in enumerate(each):
            moved = {key: value.to(accelerator.device) for key, value in batch.items()}
            with guarded.at(doing, number), accelerator.autocast():
                guarded.looks_at(0, moved)
                sums = objective.evaluate(model, moved, teacher)
            for name, (total, count) in sums.items() if counts else ():
                pair = torch.stack([torch.as_tensor(total).double(), torch.as_tensor(count).double()])
                totals[name] = totals.get(name, torch.zeros_like(pair)) + pair
    mine = {name: pair.cpu() for name, pair in totals.items()}
    return objective.finish(_added([mine] if alone else gather(mine)))


def _added(everyones: list[dict[str, torch.Tensor]]) -> dict[str, tuple[Any, Any]]:
    """{name: (sum, count)} of all processes, or two lists; one that had no row to look at names nothing."""
    added: dict[str, torch.Tensor] = {}
    for sums in everyones:
        for name, pair in sums.items():
            added[name] = added[name] + pair if name in added else pair
    return {name: (pair[0].tolist(), pair[1].tolist()) for name, pair in added.items()}


def _all(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    return ((batch, True) for batch in batches)


def _in_step(
    batches: Iterator[Batch], data: DataSets, size: int, rows: int | None, world: int
) -> Iterator[tuple[Batch, bool]]:
    """(batch, whether it counts): as many for every process, for none can compute without the pieces of the others."""
    most = sum(1 for _ in evaluation_shares(data, size, rows, 0, world))
    for _ in range(most):
        batch = next(batches, None)
        yield (batch, True) if batch is not None else (data.collate([data.validation[0]]), False)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within it; every module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _cuda_devices(accelerator: Accelerator) -> list[torch.device]:
    return [accelerator.device] if accelerator.device.type == "cuda" else []
