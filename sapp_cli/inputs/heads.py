"""Whether a Hugging Face model has the head that a task trains, as its class's name says, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import SettingError
from sapp_cli.recipe.schema import Recipe

ONE_LABEL = ("classification", "regression", "binary")


@dataclass(frozen=True)
class Head:
    """`endings` of the names of the classes that have it, the tasks that train it, and the shipped recipe that does."""

    endings: tuple[str, ...]
    tasks: tuple[str, ...]
    recipe: str | None


HEADS: Sequence[Head] = (
    Head(("ForSequenceClassification",), ONE_LABEL, "text-classification"),
    Head(("ForImageClassification",), ONE_LABEL, "image-classification"),
    Head(("ForCausalLM", "LMHeadModel"), ("causal-lm",), "causal-lm"),
    Head(("ForMaskedLM",), ("masked-lm",), None),
    Head(("Model",), ("embedding-distillation",), "sentence-embedding"),  # none: the bare model
)
OTHERS = ("HeadsModel", "EncoderDecoderModel", "WithLMHeadModel")
"""Classes that are called models and have a head, the last for causal and masked language models alike."""


def require_head(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise SettingError where the class in config.json has another head than the recipe's task trains.

    Models of a factory, tasks of one's own and classes unknown here are tried out instead.
    """
    architectures = (checkpoint.config or {}).get("architectures")
    if recipe.model.factory is not None or recipe.objective.task == "factory" or not architectures:
        return
    name, task = str(architectures[0]), recipe.objective.task
    head = None if name.endswith(OTHERS) else next((each for each in HEADS if name.endswith(each.endings)), None)
    if head is None or task in head.tasks:
        return
    wanted = " or ".join(f"…{ending}" for each in HEADS if task in each.tasks for ending in each.endings)
    example = f", as in `-r {head.recipe}`" if head.recipe else ""
    problem = (
        f"{task} trains a {wanted}, and {checkpoint.path} is a {name} (config.json); take another checkpoint, or the task "
        f"{head.tasks[0]}{example}"
    )
    raise SettingError([("objective.task", problem)])
