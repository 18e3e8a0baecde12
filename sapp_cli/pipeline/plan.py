"""`sapp plan`: everything that `prune` would decide, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sapp_cli.costs import see_costs
from sapp_cli.inputs.data import DataSets
from sapp_cli.layers import Layer, decide_layers, with_no_gain
from sapp_cli.pipeline.start import read_start
from sapp_cli.pipeline.tune import search_of
from sapp_cli.pipeline.watcher import Silence, Watcher
from sapp_cli.planning import Plan, make_plan, masked_weight_bytes, with_peak
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.load import STARTER, LoadedRecipe
from sapp_cli.recipe.located import located
from sapp_cli.recipe.schema import Recipe, with_rate
from sapp_cli.training.activations import checkpoint_gradients
from sapp_cli.training.footprint import Footprint, free_bytes, measure_footprint, process_bytes, some_rows
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.rate_search import centre

LONG_ENOUGH = 1_000_000
"""Steps of a run that a plan knows no number for."""


@located
def plan(recipe: LoadedRecipe, checkpoint_path: Path, watcher: Watcher | None = None) -> Plan:
    """Everything `prune` would decide, without training; the data are looked at if they are there.

    Raises what `prune` would raise before its first step.
    """
    settings = recipe.recipe
    start = read_start(
        settings, checkpoint_path, watcher or Silence(), needs_data=False, names_absent=recipe.path != STARTER
    )
    checkpoint, loaded, data, schedule = start.checkpoint, start.loaded, start.data, start.schedule
    layers = decide_layers(loaded.model, settings.prune, loaded.stored_names)
    multiply_adds, costs = see_costs(loaded.model, layers, settings, data)
    if settings.prune.resolved_allocation == "time" and costs is not None:
        layers = [_timed(layer, costs) for layer in layers]
    made = make_plan(checkpoint, loaded, layers, schedule, settings, multiply_adds)
    search = None
    if settings.optimizer.lr == "auto":
        search = search_of(settings, schedule.steps) if schedule else None
        settings = with_rate(settings, centre(settings.optimizer.name))
    steps = schedule.steps if schedule else LONG_ENOUGH
    if settings.train.gradient_checkpointing:
        checkpoint_gradients(loaded.model)
    pruner = Pruner(loaded.model, settings.prune, steps, loaded.stored_names, costs, notice=lambda _: None)
    memory, process = dict(made.memory), 0
    if settings.train.device == "cpu" or not torch.cuda.is_available():
        import sapp_cli.pipeline.prune  # noqa: F401 - what a run has loaded, counts

        if settings.train.precision == "fp32" and not settings.train.compile:
            memory["masked_weights"] = masked_weight_bytes(pruner.attached)  # loads what makes them
        process = max(0, process_bytes() - made.memory["weights"])
    return replace(
        made, search=search, memory=with_peak(memory, _footprint(loaded.model, pruner, settings, data), process)
    )


def _timed(layer: Layer, picoseconds: Mapping[str, int]) -> Layer:
    """The layer, marked if it was not faster when it was timed and the rule did not say so."""
    if not layer.pruned or layer.no_gain or picoseconds[layer.name]:
        return layer
    return with_no_gain(layer, "measured on this machine")


def _footprint(model: nn.Module, pruner: Pruner, settings: Recipe, data: DataSets | None) -> Footprint | None:
    """What a step takes; None where that cannot be seen: unknown inputs, or a machine too small to try a few rows."""
    rows = some_rows(model, settings, data)
    if rows is None or free_bytes() < 4 * sum(parameter.nbytes for parameter in model.parameters()):
        return None
    try:
        teacher = copy.deepcopy(model) if make_objective(settings.objective, model).needs_teacher else None
        return measure_footprint(model, pruner, settings, teacher, rows)
    except Exception:  # whatever the user's model raises
        return None
