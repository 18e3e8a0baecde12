"""The learning rate as a pure function of the step: a share of the peak, the same for every parameter group."""

from __future__ import annotations

import math

from sapp_cli.recipe.schema import LrScheduleSection


def learning_rate_share(settings: LrScheduleSection, step: int, steps: int) -> float:
    """The share of the peak rate in step 0 ≤ `step` < `steps`: a linear rise over the warm-up, then down to `final`."""
    warmup = warmup_steps(settings, steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)  # [0, 1)
    if settings.name == "cosine":
        return settings.final + (1 - settings.final) * (1 + math.cos(math.pi * done)) / 2
    if settings.name == "linear":
        return settings.final + (1 - settings.final) * (1 - done)
    if settings.name == "exponential":
        return float(settings.final**done)
    return 1.0


def warmup_steps(settings: LrScheduleSection, steps: int) -> int:
    """Steps of the warm-up: its share of the run, or `warmup_steps` if these are more, up to a quarter of the run."""
    if settings.warmup == 0:
        return 0
    return max(round(settings.warmup * steps), min(settings.warmup_steps, steps // 4))


def total_share(settings: LrScheduleSection, steps: int) -> float:
    """The shares of all steps added up."""
    return math.fsum(learning_rate_share(settings, step, steps) for step in range(steps))
