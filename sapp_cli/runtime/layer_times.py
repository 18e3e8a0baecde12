"""How long each layer takes with how many kept blocks, measured on this machine with the runtime's own kernels.

Blocks are left out at random: the time depends on how many are kept and hardly on which. Layers that are alike are measured
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sapp_cli.grid import BlockGrid
from sapp_cli.layers import Layer
from sapp_cli.runtime.conv import BlockSparseConv, geometry_of
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.load import CONVOLUTIONS, obstacle, too_little_to_gain
from sapp_cli.runtime.timing import time_in_turns

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.4)
BUDGET, MODEL_BUDGET = 0.15, 1.0
"""Seconds for each kind of layer, and for the model, about."""
LEAST_RUNS = 5


@dataclass(frozen=True)
class LayerTime:
    """Seconds that a layer takes for one example, all its calls together."""

    dense: float
    kept: tuple[int, ...]  # blocks, ascending
    sparse: tuple[float, ...]  # with so many

    def at(self, kept: int) -> float:
        """With so many blocks, interpolated; as dense where that is faster."""
        return min(self.dense, float(np.interp(kept, self.kept, self.sparse)))

    @property
    def block(self) -> float:
        """What one more block adds: the slope of the straight line through the measurements, 0 if they fall."""
        if len(self.kept) < 2:
            return 0.0
        return max(0.0, float(np.polyfit(self.kept, self.sparse, 1)[0]))

    def as_json(self) -> dict[str, Any]:
        return {"dense": self.dense, "kept": list(self.kept), "sparse": list(self.sparse)}


@torch.no_grad()
def time_layers(model: nn.Module, layers: Iterable[Layer], run: Callable[[], object]) -> dict[str, LayerTime]:
    """{pruned layer: its times}, while `run` takes the model through one example; of those that can be computed block-sparse.

    Left out are layers that the runtime keeps dense whatever is pruned, and those that `run` does not reach.
    """
    timed = [layer for layer in layers if layer.pruned and not layer.aliases and layer.name.endswith(".weight")]
    modules = {layer.name: model.get_submodule(layer.name.rpartition(".")[0]) for layer in timed}
    timed = [
        layer
        for layer in timed
        if obstacle(model, layer.name.rpartition(".")[0]) is None
        and too_little_to_gain(modules[layer.name], 1, _grid(layer)) is None
    ]
    given = _inputs(modules, [layer.name for layer in timed], run)
    known: dict[object, LayerTime] = {}
    found = {}
    for layer in timed:
        if layer.name not in given:
            continue
        x, calls = given[layer.name]
        module = modules[layer.name]
        alike = (_grid(layer), layer.shape, x.shape, str(module))
        if alike not in known:
            known[alike] = _time(module, layer, x)
        once = known[alike]
        found[layer.name] = replace(
            once, dense=calls * once.dense, sparse=tuple(calls * seconds for seconds in once.sparse)
        )
    return found


@torch.no_grad()
def time_model(model: nn.Module, times: Mapping[str, LayerTime], run: Callable[[], object]) -> float:
    """Seconds of one `run`, dense: what the timed layers take, over their share of a run.

    On a busy machine a whole run is disturbed for certain and a single layer now and then; a share is disturbed alike on both
    sides.
    """
    inside = 0.0
    began: list[float] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        began.append(_now(args))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal inside
        inside += _now(args) - began.pop()

    modules = {id(module): module for module in (model.get_submodule(name.rpartition(".")[0]) for name in times)}
    handles = [module.register_forward_pre_hook(enter) for module in modules.values()]
    handles += [module.register_forward_hook(leave) for module in modules.values()]
    shares: list[float] = []
    seconds: list[float] = []
    try:
        run()
        end = time.perf_counter() + MODEL_BUDGET
        while len(shares) < LEAST_RUNS or time.perf_counter() < end:
            inside, start = 0.0, time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
            shares.append(inside / seconds[-1])
    finally:
        for handle in handles:
            handle.remove()
    layers = sum(found.dense for found in times.values())
    return max(layers / median(shares), layers) if times else min(seconds)


def _now(args: tuple[Any, ...]) -> float:
    """The clock, once a GPU has done what it was told."""
    if any(isinstance(value, Tensor) and value.is_cuda for value in args):
        torch.cuda.synchronize()
    return time.perf_counter()


def _grid(layer: Layer) -> BlockGrid:
    assert layer.grid is not None, "a pruned layer has a grid"
    return layer.grid


def _inputs(
    modules: Mapping[str, nn.Module], names: Iterable[str], run: Callable[[], object]
) -> dict[str, tuple[Tensor, int]]:
    """{layer: (what its module is given, how often)}."""
    given: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            given[name] = x.clone(), given[name][1] + 1 if name in given else 1

        return note

    handles = [modules[name].register_forward_pre_hook(watch(name), with_kwargs=True) for name in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return given


def _time(module: nn.Module, layer: Layer, x: Tensor) -> LayerTime:
    grid = _grid(layer)
    counts = sorted({max(1, round(density * grid.count)) for density in DENSITIES})
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(grid.count, generator=generator)

    def call(way: nn.Module) -> Callable[[], None]:
        def once() -> None:
            way(x)
            if x.is_cuda:  # a GPU has only been told what to do by now
                torch.cuda.synchronize(x.device)

        return once

    ways = {str(count): call(_with_blocks(module, grid, order[:count])) for count in counts}
    timings = time_in_turns({"dense": call(module), **ways}, budget=BUDGET)
    seconds = [timings[str(count)].least for count in counts]
    return LayerTime(timings["dense"].least, tuple(counts), tuple(seconds))


def _with_blocks(module: nn.Module, grid: BlockGrid, kept: Tensor) -> nn.Module:
    """The layer block-sparse, with these blocks (numbers) of ones."""
    mask = torch.zeros(grid.count)
    mask[kept] = 1.0
    (br, bc), (rows, columns) = grid.block, grid.matrix
    matrix = mask.view(grid.size).repeat_interleave(br, 0).repeat_interleave(bc, 1)[:rows, :columns]
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)), "a Linear, Conv1D or convolution"
    matrix = matrix.to(weight.device, weight.dtype)
    sparse = BlockSparseLinear.from_weight(matrix, bias, grid.block)
    if isinstance(module, CONVOLUTIONS):
        return BlockSparseConv(geometry_of(module), sparse).eval()
    return sparse.eval()
