"""What a short run does differently from a long one, in words, for `sapp plan`."""

from __future__ import annotations

from collections.abc import Iterator

from sapp_cli.core.schedule import PhaseSchedule
from sapp_cli.methods import SequentialAttention
from sapp_cli.pruner.parameter_groups import LOGIT_RATE_LIMIT, LOGIT_RATES_ADD_UP_TO
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.learning_rate import total_share, warmup_steps


def short_run_choices(recipe: Recipe, schedule: PhaseSchedule) -> Iterator[str]:
    """A line for each limit of a short run that holds in this one (docs/method.md, "Short runs")."""
    steps, settings = schedule.steps, recipe.prune
    warmup, share = warmup_steps(recipe.lr_schedule, steps), round(recipe.lr_schedule.warmup * steps)
    if warmup > share:
        yield f"short run: warm-up of {warmup} steps (lr_schedule.warmup_steps); its share of the run would be {share}"
    dense = schedule.phases[0].stop
    if schedule.spans != settings.settings.spans(settings.timetable):
        yield f"short run: dense start of {dense} steps, so that gradients of more than a batch or two rank the blocks"
    method = settings.settings
    if isinstance(method, SequentialAttention) and method.lr is None and recipe.optimizer.name != "sgd":
        wanted = LOGIT_RATES_ADD_UP_TO / total_share(recipe.lr_schedule, steps)
        if wanted > LOGIT_RATE_LIMIT:
            yield (
                f"short run: logits learn at {LOGIT_RATE_LIMIT:g} (prune.attention.lr); rates that add up to "
                f"{LOGIT_RATES_ADD_UP_TO:g} would begin at {wanted:.2g}"
            )
