"""Whether a Hugging Face model has the head that a task trains, as its class's name says, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import SettingError
from sapp_cli.inputs.classes import CLASSIFIERS, classes_of

if TYPE_CHECKING:  # pydantic takes a second, and `recipes init` does without
    from sapp_cli.recipe.schema import Recipe

ONE_LABEL = ("classification", "regression", "binary")


@dataclass(frozen=True)
class Head:
    """`endings` of the names of the classes that have it, the tasks that train it, and the shipped recipe that does."""

    endings: tuple[str, ...]
    tasks: tuple[str, ...]
    recipe: str | None


SEQUENCE_CLASSIFICATION = Head(("ForSequenceClassification",), ONE_LABEL, "text-classification")
IMAGE_CLASSIFICATION = Head(("ForImageClassification",), ONE_LABEL, "image-classification")
CAUSAL_LM = Head(("ForCausalLM", "LMHeadModel"), ("causal-lm",), "causal-lm")
MASKED_LM = Head(("ForMaskedLM",), ("masked-lm",), None)
NO_HEAD = Head(("Model",), ("embedding-distillation",), "sentence-embedding")
HEADS: Sequence[Head] = (SEQUENCE_CLASSIFICATION, IMAGE_CLASSIFICATION, CAUSAL_LM, MASKED_LM, NO_HEAD)
OTHERS = ("HeadsModel", "EncoderDecoderModel", "WithLMHeadModel")
"""Classes that are called models and have a head, the last for causal and masked language models alike."""


def architecture_of(config: Mapping[str, Any] | None) -> str | None:
    """The class that config.json names first, if it names one."""
    names = (config or {}).get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def head_of(architecture: str) -> Head | None:
    """As the class's name says; None where it says another one, or nothing."""
    if architecture.endswith(OTHERS):
        return None
    return next((head for head in HEADS if architecture.endswith(head.endings)), None)


def kinds_of_labels(config: Mapping[str, Any], place: str = "config.json") -> tuple[Sequence[str], str]:
    """The tasks that train the head of a classifier, the usual one first, and what of config.json says so."""
    kind, classes = config.get("problem_type"), classes_of(config, place)
    if kind == "multi_label_classification":
        return ("binary",), f'"problem_type": "{kind}"'
    if kind == "regression":
        return ("regression",), f'"problem_type": "{kind}"'
    if kind is None and classes is not None and len(classes.numbers) == 1:
        return ("regression", "binary"), f"one label ({'id2label' if config.get('id2label') else 'num_labels'})"
    if kind == "single_label_classification":
        return ("classification", "binary"), f'"problem_type": "{kind}"'
    return ONE_LABEL, ""


def _require_kind(checkpoint: Checkpoint, task: str) -> None:
    place = f"{checkpoint.path}/config.json"
    tasks, why = kinds_of_labels(checkpoint.config or {}, place)
    if task not in tasks:
        several = (
            ", whose rows have a number for each label or a list of names"
            if why.endswith('"multi_label_classification"')
            else ""
        )
        raise SettingError(
            [("objective.task", f"{task}, but {place} has {why}; take the task {' or '.join(tasks)}{several}")]
        )


def require_head(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise SettingError where the class in config.json has another head than the recipe's task trains.

    Models of a factory, tasks of one's own and classes unknown here are tried out instead.
    """
    name, task = architecture_of(checkpoint.config), recipe.objective.task
    if recipe.model.factory is not None or task == "factory" or name is None:
        return
    if task in ONE_LABEL and name.endswith(CLASSIFIERS):
        _require_kind(checkpoint, task)
    head = head_of(name)
    if head is None or task in head.tasks:
        return
    wanted = " or ".join(f"…{ending}" for each in HEADS if task in each.tasks for ending in each.endings)
    example = f", as in `-r {head.recipe}`" if head.recipe else ""
    problem = (
        f"{task} trains a {wanted}, and {checkpoint.path} is a {name} (config.json); take another checkpoint, or the task "
        f"{head.tasks[0]}{example}"
    )
    raise SettingError([("objective.task", problem)])
