"""Noticing that a run goes wrong while it does."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sapp_cli.core.schedule import Moment
from sapp_cli.errors import TrainingError
from sapp_cli.layers import AttachedLayer, held
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.processes import any_of

LOOKS = 50  # over a run
PATIENCE = 3  # looks in a row: a batch without a gradient for a layer can be chance, three far apart are not


def must_be_finite(value: float, what: str, moment: Moment, recipe: Recipe) -> None:
    """Raise TrainingError, with what to change, for a loss or a gradient that is infinite or NaN."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} is {value} in step {moment.step + 1} ({moment.name} phase): training diverged. "
            f"Lower optimizer.lr (now {recipe.optimizer.rate:g}), set train.clip_norm: 1.0, or lengthen lr_schedule.warmup"
        )


class GradientWatch:
    """Notices a layer that pruning has cut off: gradients reached it, and then no longer do.

    Where the only path through a layer meets an empty block row or column, nothing downstream depends on it any more.
    Looking at gradients finds that in any architecture. Layers that never had one are not the pruning's fault.
    """

    def __init__(self, attached: Mapping[str, AttachedLayer], steps: int) -> None:
        self._attached = attached
        self._every = max(1, steps // LOOKS)
        self._reached: set[str] = set()
        self._silent: dict[str, int] = dict.fromkeys(attached, 0)

    def look(self, moment: Moment) -> None:
        """Look at the gradients of this step, after backward. Raises TrainingError for a layer that is cut off."""
        if moment.step % self._every:
            return
        gradients = [layer.trained.grad for layer in self._attached.values()]
        arrived = any_of([gradient is not None and bool(held(gradient).any()) for gradient in gradients])
        for name, arrives in zip(self._attached, arrived, strict=True):
            if arrives:
                self._reached.add(name)
                self._silent[name] = 0
            elif name in self._reached:
                self._silent[name] += 1
        cut_off = [name for name, looks in self._silent.items() if looks >= PATIENCE]
        if cut_off:
            more = f" (and {len(cut_off) - 1} more)" if len(cut_off) > 1 else ""
            raise TrainingError(
                f"'{self._attached[cut_off[0]].layer.stored}'{more} gets no gradient any more in step {moment.step + 1}: "
                "pruning left no path through it. Lower its sparsity with a rule in prune.rules, take smaller "
                "blocks, or set train.stop_on_cut_off: false to go on without it"
            )
