"""What a block costs: multiply-adds or time, seen while the model computes one example.

    work = count_layers(model, layers, lambda: model(batch_of_one))
    costs = multiply_adds_of_blocks(layers, work)                      # for Pruner(..., costs=costs)

A Linear is applied once to every token of the example, a convolution once at every output position, an embedding is looked
up and never multiplied. Products of activations with each other (attention) cost the same, whatever is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sapp_cli.errors import SettingError, UsageError
from sapp_cli.inputs.data import DataSets
from sapp_cli.layers import Layer
from sapp_cli.recipe.schema import Recipe
from sapp_cli.runtime.example_inputs import example_inputs
from sapp_cli.runtime.layer_times import LayerTime, time_layers, time_model
from sapp_cli.runtime.multiply_adds import count_multiply_adds
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.objectives.forward import Inputs


@torch.no_grad()
def count_layers(
    model: nn.Module, layers: Iterable[Layer], run: Callable[[], object], examples: int = 1
) -> dict[str, int | None]:
    """{layer name: multiply-adds of its weight for one example}, while `run` takes the model through `examples` of them.

    0 for a layer that multiplies nothing then, None if its weight went into an operator of which nothing is known. The
    model is in eval mode meanwhile; its own modes and the random state come back.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with _untouched(model):
        return count_multiply_adds({layer.name: parameters[layer.name] for layer in layers}, run, examples)


def example_run(model: nn.Module, recipe: Recipe, data: DataSets | None) -> Callable[[], object]:
    """A call that takes the model through one example: of the shape its configuration asks for, else the first training row.

    What it raises is for whoever calls it: UsageError where neither is known, or what the model makes of the data.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def placed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(device) for key, value in batch.items()}

    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or recipe.data.max_length
    try:
        inputs = placed(example_inputs(model, 1, min(longest, recipe.data.max_length)))
        return lambda: model(**inputs)
    except UsageError:
        if data is None:
            raise
    with torch.random.fork_rng(devices=[]):
        batch = placed(data.collate([data.train[0]]))
    if recipe.objective.task == "factory":
        objective = make_objective(recipe.objective, model)
        return lambda: objective.evaluate(model, batch)
    taken = Inputs.of(model)
    return lambda: taken.call(model, batch)


def see_work(
    model: nn.Module, layers: Iterable[Layer], recipe: Recipe, data: DataSets | None
) -> dict[str, int | None] | None:
    """`count_layers` of one `example_run`; None if there is none, or the model does not take it."""
    try:
        return count_layers(model, layers, example_run(model, recipe, data))
    except Exception:  # whatever the user's model raises
        return None


def see_times(
    model: nn.Module, layers: Iterable[Layer], recipe: Recipe, data: DataSets | None
) -> tuple[dict[str, LayerTime], float]:
    """The times of every pruned layer that can be computed block-sparse, and the seconds of the whole dense model.

    Raises SettingError where there is no example to measure with.
    """
    with _measurable(), _untouched(model):
        run = example_run(model, recipe, data)
        times = time_layers(model, layers, run)
        return times, time_model(model, times, run)


def multiply_adds_of_blocks(layers: Iterable[Layer], work: Mapping[str, int | None]) -> dict[str, int] | None:
    """{pruned layer: multiply-adds of one of its blocks for one example}; edge blocks count as whole ones.

    0 for a layer that is not faster block-sparse: its multiply-adds are those of the dense weight, whatever is pruned. None if
    those of a pruned layer are not known.
    """
    costs = {}
    for layer in layers:
        if layer.pruned and layer.grid is not None:
            known = work[layer.name]
            if known is None:
                return None
            block = -(-known * math.prod(layer.grid.block) // layer.parameters)
            costs[layer.name] = 0 if layer.no_gain else block
    return costs


def picoseconds_of_blocks(layers: Iterable[Layer], times: Mapping[str, LayerTime]) -> dict[str, int]:
    """{pruned layer: what one more block takes}, whole numbers, so that sums are exact.

    0 for a layer that stays dense, and for one that was not faster with the blocks of its own target.
    """
    return {
        layer.name: round(times[layer.name].block * 1e12) if layer.name in times and _gains(layer, times) else 0
        for layer in layers
        if layer.pruned
    }


def _gains(layer: Layer, times: Mapping[str, LayerTime]) -> bool:
    return times[layer.name].at(layer.kept_count) < times[layer.name].dense


def see_costs(
    model: nn.Module, layers: list[Layer], recipe: Recipe, data: DataSets | None
) -> tuple[dict[str, int | None] | None, dict[str, int] | None]:
    """(multiply-adds of each layer, None if not known; what the recipe's allocation needs to know of each block, or None).

    The second is None too if the recipe leaves the allocation open and the model cannot be seen at work; then parameters are
    the only budget. Raises SettingError if the recipe's allocation needs to see it and cannot.
    """
    allocation = recipe.prune.resolved_allocation
    work = see_work(model, layers, recipe, data)
    if allocation == "time":
        return work, picoseconds_of_blocks(layers, see_times(model, layers, recipe, data)[0])
    if allocation not in ("balanced", "multiply-adds"):
        return work, None
    costs = None if work is None else multiply_adds_of_blocks(layers, work)
    if costs is not None or recipe.prune.allocation is None:
        return work, costs
    if work is None:
        with _measurable():
            count_layers(model, layers, example_run(model, recipe, data))
    hidden = [layer.stored for layer in layers if layer.pruned and (work or {}).get(layer.name) is None]
    problem = (
        f"what '{hidden[0]}' multiplies cannot be counted: an unknown operator takes it; take allocation: parameters"
    )
    raise SettingError([("prune.allocation", problem)])


@contextmanager
def _measurable() -> Iterator[None]:
    """SettingError, with what to do, for whatever keeps the model from being seen at work."""
    try:
        yield
    except Exception as error:  # whatever the user's model raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = (
            f"this needs one example to see the model at work, and there is none ({reason}); see that data.files are "
            "there, or take allocation: parameters"
        )
        raise SettingError([("prune.allocation", problem)]) from error


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without fused attention, which would call no module; modes and random state come back."""
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes.items():
            module.training = mode
