"""What the settings of a run come to: its timetable, and what a block of each layer costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from sapp_cli.core.schedule import Phase, PhaseSchedule, with_dense_start
from sapp_cli.errors import SettingError
from sapp_cli.layers import Layer
from sapp_cli.recipe.prune_section import Allocation, PruneSection

DENSE_STEPS = 8
"""Steps, at least, in which gradients are gathered before the first block goes; in a short run a fifth of all steps."""


def make_schedule(settings: PruneSection, steps: int) -> PhaseSchedule:
    """The phases of a run of `steps` steps.

    With score fisher the preset `fine-tune` gives the dense start min(8, steps // 5) steps at least: one batch or two rank
    nothing. The other phases share the rest as before.

    Raises SettingError, naming the smallest number that works, if it is too short, or where nothing comes before the first
    selection that gradients could be gathered in.
    """
    spans = settings.settings.spans(settings.timetable)
    if settings.resolved_score == "fisher" and spans[0].phase is not Phase.DENSE:
        raise SettingError(
            [("prune.phases", "score fisher gathers gradients first: give `dense` a share of the run, e.g. 0.05")]
        )
    if spans[-1].phase is Phase.DENSE:
        raise SettingError(
            [("prune.phases", "the run ends with a dense phase; give `final_sparse` a share, e.g. 0.15")]
        )
    try:
        schedule = PhaseSchedule(spans, steps)
    except ValueError as error:
        raise SettingError([("train.steps", str(error))]) from error
    least = min(DENSE_STEPS, steps // 5)
    if settings.phases != "fine-tune" or settings.resolved_score != "fisher" or schedule.phases[0].stop >= least:
        return schedule
    return PhaseSchedule(with_dense_start(spans, Fraction(least, steps)), steps)


BlockCosts = tuple[int, ...]
"""What one block takes of each budget; BUDGETS names them."""

BUDGETS: dict[Allocation, tuple[str, ...]] = {
    "uniform": (),
    "balanced": ("parameters", "multiply_adds"),
    "parameters": ("parameters",),
    "multiply-adds": ("multiply_adds",),
    "time": ("picoseconds",),
}


def block_costs(
    layers: list[Layer], settings: PruneSection, costs: Mapping[str, int] | None = None
) -> dict[str, BlockCosts] | None:
    """{pruned layer: what one block takes of each budget of the allocation}; None if each layer has its own count.

    Parameters are known from the blocks, `costs` gives the multiply-adds or the time of one. If `costs` are missing and the
    settings do not name an allocation, parameters are the only budget. Raises SettingError if they are missing otherwise.
    """
    pruned = [layer for layer in layers if layer.pruned]
    allocation = settings.resolved_allocation
    if allocation == "uniform":
        return None
    parameters = {layer.name: math.prod(layer.grid.block) for layer in pruned if layer.grid is not None}
    if allocation == "parameters" or (costs is None and settings.allocation is None):
        return {name: (cost,) for name, cost in parameters.items()}
    if costs is None:
        problem = f"{allocation} has to be measured first: give the Pruner `costs`, from sapp_cli.costs"
        raise SettingError([("prune.allocation", problem)])
    if allocation == "balanced":
        return {name: (cost, costs[name]) for name, cost in parameters.items()}
    return {layer.name: (costs[layer.name],) for layer in pruned}
