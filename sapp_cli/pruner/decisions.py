"""What the settings of a run come to: its timetable, and what a block of each layer costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sapp_cli.core.schedule import Phase, PhaseSchedule
from sapp_cli.errors import SettingError
from sapp_cli.layers import Layer
from sapp_cli.recipe.prune_section import PruneSection


def make_schedule(settings: PruneSection, steps: int) -> PhaseSchedule:
    """The phases of a run of `steps` steps.

    Raises SettingError, naming the smallest number that works, if it is too short, or where nothing comes before the first
    selection that gradients could be gathered in.
    """
    spans = settings.settings.spans(settings.timetable)
    if settings.resolved_score == "fisher" and spans[0].phase is not Phase.DENSE:
        raise SettingError(
            [("prune.phases", "score fisher gathers gradients first: give `dense` a share of the run, e.g. 0.05")]
        )
    try:
        return PhaseSchedule(spans, steps)
    except ValueError as error:
        raise SettingError([("train.steps", str(error))]) from error


def block_costs(
    layers: list[Layer], settings: PruneSection, costs: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """{pruned layer: what one block costs} in the unit of the allocation; None where each layer has its own count.

    Parameters are known from the blocks, other costs are those given. Where none are and the settings do not ask for them by
    name, parameters stand in for multiply-adds. Raises SettingError where they are needed and missing.
    """
    pruned = [layer for layer in layers if layer.pruned]
    allocation = settings.resolved_allocation
    if allocation == "uniform":
        return None
    if allocation == "parameters" or (costs is None and settings.allocation is None):
        return {layer.name: math.prod(layer.grid.block) for layer in pruned if layer.grid is not None}
    if costs is None:
        problem = f"{allocation} has to be measured first: give the Pruner `costs`, from sapp_cli.costs"
        raise SettingError([("prune.allocation", problem)])
    return {layer.name: costs[layer.name] for layer in pruned}
