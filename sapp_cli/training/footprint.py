"""How much memory a training step and an evaluation take: measured on a few rows, said for as many as the recipe has.

What is counted are the tensors that are alive at once, so nothing else in the process matters, and no memory beyond that of
a small batch is needed. From two sizes of a batch follows any: what a row adds is the same for each.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sapp_cli.core.masked_linear import set_aside
from sapp_cli.errors import UsageError
from sapp_cli.inputs.data import Batch, DataSets
from sapp_cli.inputs.rows import IGNORED, TARGETS
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.runtime.example_inputs import example_inputs
from sapp_cli.training.evaluation import evaluation_mode
from sapp_cli.training.objectives import make_objective

FEW_ROWS = 4
LOOKED_AT = 256


@dataclass(frozen=True)
class Footprint:
    """Bytes beyond weights, teacher and optimizer state, at the worst moment."""

    step: int
    """Of a training step: gradients, masked weights and activations together."""
    evaluation: int


def measure_footprint(
    model: nn.Module, pruner: Pruner, recipe: Recipe, teacher: nn.Module | None, rows: Callable[[int], Batch]
) -> Footprint:
    """That of a run with the recipe's batches, `rows(n)` being a batch of n of them.

    Moves the model's gradients and nothing else; `pruner` has its masks on it. Raises whatever the model raises at a batch
    it does not take.
    """
    objective = make_objective(recipe.objective, model)
    accumulated = recipe.train.accumulate > 1
    device = next(model.parameters()).device
    cast = torch.autocast(device.type, torch.bfloat16) if recipe.train.precision != "fp32" else nullcontext()
    held = [*model.parameters(), *model.buffers(), *(teacher.parameters() if teacher else ())]

    def train_on(batch: Batch) -> None:
        with cast:
            loss = objective.loss(model, batch, teacher).loss
        torch.autograd.backward(loss)

    def step(size: int) -> list[int]:
        batch = _placed(rows(size), device)
        if accumulated:
            train_on(batch)  # from the second batch on gradients are there from the start
        gradients = sum(gradient.nbytes for gradient in _gradients(model))
        live = _LiveTensors([*held, *batch.values(), *_gradients(model)])
        with live:
            train_on(batch)
        model.zero_grad(set_to_none=True)
        return [size + gradients for size in live.course]

    def evaluation(size: int) -> list[int]:
        batch = _placed(rows(size), device)
        live = _LiveTensors([*held, *batch.values()])
        with torch.no_grad(), evaluation_mode(model), cast, live:
            objective.evaluate(model, batch, teacher)
        return live.course

    evaluated = recipe.data.evaluation_batch_size or recipe.data.batch_size
    model.train()
    set_aside(
        max((layer.theta.numel() for layer in pruner.attached.values() if layer.holds_no_masked_weight), default=0)
    )
    with torch.random.fork_rng(devices=[]):
        pruner.step(0)
        return Footprint(_peak_of_rows(recipe.data.batch_size, step), _peak_of_rows(evaluated, evaluation))


def _peak_of_rows(count: int, measure: Callable[[int], list[int]]) -> int:
    """The most that `count` rows take; `measure` gives what is alive after each operation on a batch of so many.

    For many rows from two smaller batches, operation by operation: the moment that is worst for few rows, when the gradients
    are there, need not be worst for many, when the activations are.
    """
    if count <= FEW_ROWS:
        return max(measure(count))
    half, few = measure(FEW_ROWS // 2), measure(FEW_ROWS)
    if len(half) != len(few):  # other operations for other batches: then by the peaks
        half, few = [max(half)], [max(few)]
    more = (count - FEW_ROWS) / (FEW_ROWS - FEW_ROWS // 2)
    return round(max(then + more * (then - before) for before, then in zip(half, few, strict=True)))


def process_bytes() -> int:
    """What this process holds in memory, the parts of torch loaded that training uses; 0 where the system does not say."""
    layer = nn.Linear(8, 8)
    torch.autograd.backward(layer(torch.zeros(2, 8)).sum())
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_bytes() -> float:
    """What the machine could still give; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def some_rows(model: nn.Module, recipe: Recipe, data: DataSets | None) -> Callable[[int], Batch] | None:
    """Batches of n rows as a run may meet them: the longest rows of the data, else of the shape the model's configuration says.

    None where neither is known.
    """
    if data is not None:
        every = len(data.train)  # type: ignore[arg-type]
        looked_at = [data.train[index * every // LOOKED_AT] for index in range(LOOKED_AT)] if every else []
        looked_at.sort(key=lambda row: -sum(value.numel() for value in row.values()))
        longest = looked_at[:FEW_ROWS]
        return lambda count: data.collate((longest * -(-count // len(longest)))[:count])
    try:
        example_inputs(model, 1, 1)
    except UsageError:
        return None
    return lambda count: _generated(model, recipe, count)


def _generated(model: nn.Module, recipe: Recipe, count: int) -> Batch:
    config: Any = getattr(model, "config", None)
    length = min(recipe.data.max_length, getattr(config, "max_position_embeddings", None) or recipe.data.max_length)
    inputs = example_inputs(model, count, length)
    task, ids = recipe.objective.task, inputs.get("input_ids", torch.zeros(count, 1, dtype=torch.long))
    if task in ("causal-lm", "masked-lm"):
        every = 1 if task == "causal-lm" else round(1 / recipe.objective.mask_probability)
        inputs[TARGETS] = torch.full_like(ids, IGNORED)
        inputs[TARGETS][:, ::every] = ids[:, ::every]
    elif task == "regression":
        inputs[TARGETS] = torch.zeros(count, getattr(config, "num_labels", 1))
    elif task in ("classification", "binary"):
        inputs[TARGETS] = torch.zeros(count, dtype=torch.long)
    return inputs


def _placed(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device) for key, value in batch.items()}


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, the bytes of all tensors made since that are alive; `course`: after each operation."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        """`held`: what was there before and does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.course: list[int] = [0]
        self._now: int = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.course.append(self._now)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
