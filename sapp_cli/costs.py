"""What a block costs: multiplications or time, seen while the model computes one example.

    applications = count_applications(model, layers, lambda: model(batch_of_one))
    costs = multiply_adds_of_blocks(layers, applications)              # for Pruner(..., costs=costs)

A Linear is applied once to every token of the example, a convolution once at every output position, an embedding is looked
up and never multiplied. Products of activations with each other (attention) cost the same whatever is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.errors import SappError, SettingError, UsageError
from sapp_cli.inputs.data import DataSets
from sapp_cli.layers import Layer
from sapp_cli.recipe.schema import Recipe
from sapp_cli.runtime.example_inputs import example_inputs
from sapp_cli.runtime.layer_times import LayerTime, time_layers, time_model
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.objectives.forward import Inputs


@torch.no_grad()
def count_applications(
    model: nn.Module, layers: Iterable[Layer], run: Callable[[], object], examples: int = 1
) -> dict[str, int]:
    """{layer name: times its weight is applied to one example}, while `run` takes the model through `examples` of them.

    0 for a layer that computes nothing then. Layers that are not seen as a matrix are left out. The model is in eval mode
    meanwhile, its own modes and the random state come back.
    """
    layers = [layer for layer in layers if layer.layout is not None]
    counts = {layer.name: 0 for layer in layers}
    handles = []

    def watch(owner: nn.Module, attribute: str, name: str) -> None:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            counts[name] += _rows(module, attribute, (*args, *kwargs.values()), output)

        handles.append(owner.register_forward_hook(note, with_kwargs=True))

    seen: set[tuple[int, str]] = set()
    for layer in layers:
        for place in layer.names:
            owner, attribute = _owner(model, place)
            if (id(owner), attribute) not in seen:  # a module that is itself shared is called through one object
                seen.add((id(owner), attribute))
                watch(owner, attribute, layer.name)
    try:
        with _untouched(model):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: -(-count // examples) for name, count in counts.items()}


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


def see_applications(
    model: nn.Module, layers: Iterable[Layer], recipe: Recipe, data: DataSets | None
) -> dict[str, int] | None:
    """`count_applications` of one `example_run`; None where there is none, or the model does not take it."""
    try:
        return count_applications(model, layers, example_run(model, recipe, data))
    except (SappError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
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


def multiply_adds_of_blocks(layers: Iterable[Layer], applications: Mapping[str, int]) -> dict[str, int]:
    """{pruned layer: multiply-adds of one of its blocks for one example}; edge blocks count as whole ones."""
    return {
        layer.name: math.prod(layer.grid.block) * applications[layer.name]
        for layer in layers
        if layer.pruned and layer.grid is not None
    }


def picoseconds_of_blocks(layers: Iterable[Layer], times: Mapping[str, LayerTime]) -> dict[str, int]:
    """{pruned layer: what one more block takes}, 0 for a layer that stays dense; whole numbers, so that sums are exact."""
    return {
        layer.name: round(times[layer.name].block * 1e12) if layer.name in times else 0
        for layer in layers
        if layer.pruned
    }


def see_costs(
    model: nn.Module, layers: list[Layer], recipe: Recipe, data: DataSets | None
) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """(applications, None if not known; what the recipe's allocation has to be told of each pruned layer's blocks, or None).

    The second is None too where the recipe leaves the allocation open and the model cannot be seen at work; a block's
    parameters stand in. Raises SettingError where the recipe's allocation needs to see it and cannot.
    """
    allocation = recipe.prune.resolved_allocation
    applications = see_applications(model, layers, recipe, data)
    if allocation == "time":
        return applications, picoseconds_of_blocks(layers, see_times(model, layers, recipe, data)[0])
    if allocation in ("balanced", "multiply-adds"):
        if applications is None:
            if recipe.prune.allocation is None:
                return None, None
            with _measurable():
                count_applications(model, layers, example_run(model, recipe, data))
        assert applications is not None, "the same call has just failed"
        return applications, multiply_adds_of_blocks(layers, applications)
    return applications, None


@contextmanager
def _measurable() -> Iterator[None]:
    """SettingError, with what to do, for whatever keeps the model from being seen at work."""
    try:
        yield
    except (SappError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = (
            f"this needs one example to see the model at work, and there is none ({reason}); see that data.files are "
            "there, or take allocation: parameters"
        )
        raise SettingError([("prune.allocation", problem)]) from error


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module whose call applies the weight, and the weight's name within it."""
    path, _, attribute = name.rpartition(".")
    parent_path, _, child = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if child == "out_proj" and isinstance(parent, nn.MultiheadAttention):
        return parent, "out_proj.weight"  # which hands it to a function and never calls the module
    return model.get_submodule(path), attribute


def _rows(module: nn.Module, attribute: str, given: tuple[Any, ...], output: Any) -> int:
    """Rows of the matrix that the weight was multiplied with in this call."""
    tensors = [value for value in given if isinstance(value, Tensor)]
    if isinstance(module, nn.Embedding) or not tensors:
        return 0
    if isinstance(module, nn.MultiheadAttention):
        query, key, value = (tensor.numel() // tensor.shape[-1] for tensor in (*tensors, *2 * tensors[:1])[:3])
        by_name = {"k_proj_weight": key, "v_proj_weight": value}
        return -(-(query + key + value) // 3) if attribute == "in_proj_weight" else by_name.get(attribute, query)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        assert isinstance(output, Tensor), "a convolution gives a tensor"
        return output.numel() // module.out_channels
    return tensors[0].numel() // tensors[0].shape[-1]


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
