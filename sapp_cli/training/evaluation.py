"""Metrics of a model over validation rows, reduced by count over batches and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from sapp_cli.inputs.data import DataSets
from sapp_cli.training.batches import evaluation_batches
from sapp_cli.training.objectives import Objective


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
) -> dict[str, float]:
    """{metric: value} over the first `rows` validation rows (None: all), the model in eval mode.

    Leaves the random state of torch as it was: an evaluation must not change the steps after it.
    """
    totals: dict[str, torch.Tensor] = {}
    with evaluation_mode(model), torch.random.fork_rng(devices=_cuda_devices(accelerator)):
        rank, world = accelerator.process_index, accelerator.num_processes
        for batch in evaluation_batches(data, batch_size, rows, rank, world):
            moved = {key: value.to(accelerator.device) for key, value in batch.items()}
            with accelerator.autocast():
                sums = objective.evaluate(model, moved, teacher)
            for name, (total, count) in sums.items():
                pair = torch.stack([torch.as_tensor(total).double(), torch.as_tensor(count).double()])
                totals[name] = totals.get(name, torch.zeros_like(pair)) + pair
    reduced = {name: accelerator.reduce(pair, "sum") for name, pair in totals.items()}
    return objective.finish({name: (float(pair[0]), float(pair[1])) for name, pair in reduced.items()})


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
