"""The dense start of a run: whether the gradients of its steps still tell something of the checkpoint that came in.

Until the first block is removed, nothing but the optimizer can raise the loss. Blocks ranked by the gradients of a model that
the optimizer has ruined are ranked by chance, and a short run has no time to forget them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sapp_cli.core.schedule import Moment, Phase, PhaseSchedule

FIRST = 5
"""Steps, at most, whose median loss is that of the start: one batch is harder than another, and one step may be a bad one."""
LEAST = 0.05
"""A smaller loss of the start counts as this one. A model that is distilled from itself begins at 0, and a trained classifier
not far above; a loss of 0.1 (nats, 1 − cosine) is no damage then, however many times the first it may be."""
RAISED = 2.0
"""Times the loss of the start; a greater one is not sane."""
FEWEST = 4
"""Steps whose gradients are gathered in any case, because a ranking needs more than one batch."""


@dataclass
class DenseStart:
    """What is known of the losses of the dense start; a part of the run's state."""

    seen: int = 0  # steps
    first: list[float] = field(default_factory=list)  # losses of the first steps
    sane: int = 0  # steps
    raised: int = 0  # steps in a row that were not sane
    reported: bool = False

    @property
    def loss(self) -> float:
        """Of the start."""
        return max([LEAST, *sorted(self.first)[(len(self.first) - 1) // 2 :][:1]])

    def counts(
        self, moment: Moment, loss: float | None, schedule: PhaseSchedule, notice: Callable[[str], None]
    ) -> bool:
        """False if the gradients of this step are not to rank blocks, because its loss is not sane; call it once a step.

        Sane is a finite loss of at most twice that of the start: the median of the first steps (5, or a quarter of the dense
        start; the lower one of an even number), and 0.05 at least. After the dense start removed blocks raise the loss, so
        every step counts, as without a `loss`. Of several processes all see the same loss, that of the whole step. `notice` is
        called with one line, once, where as many steps in a row as make the start are not sane.
        """
        length = schedule.phases[0].stop
        if loss is None or moment.phase is not Phase.DENSE or moment.step >= length:
            return True
        self.seen += 1
        first = max(1, min(FIRST, length // 4))
        if self.seen <= first and math.isfinite(loss):
            self.first.append(loss)
        if math.isfinite(loss) and loss <= RAISED * self.loss:
            self.sane, self.raised = self.sane + 1, 0
            return True
        self.raised += 1
        if self.raised >= first and not self.reported:
            self.reported = True
            notice(
                f"step {moment.step + 1}: the dense start has raised the loss from {self.loss:.3g} to {loss:.3g}, before "
                "any block was removed; lower optimizer.lr, or lengthen lr_schedule.warmup"
            )
        return math.isfinite(loss) and self.seen <= FEWEST

    def warn_of_few(self, notice: Callable[[str], None]) -> None:
        """For the first selection: a line if so few steps were sane that gradients of others rank blocks as well."""
        if self.sane < min(FEWEST, self.seen):
            notice(
                f"{self.sane} of the {self.seen} steps of the dense start had a loss of at most {RAISED:g} times that of "
                "its beginning; gradients of other steps rank the blocks as well, so lower optimizer.lr"
            )
