"""What is minimized and what is reported: one task a file, all asked in the same way (`Objective`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from sapp_cli.errors import SettingError
from sapp_cli.recipe.factory import load_factory
from sapp_cli.recipe.schema import ObjectiveSection
from sapp_cli.training.objectives.binary import Binary
from sapp_cli.training.objectives.classification import Classification
from sapp_cli.training.objectives.custom import Custom
from sapp_cli.training.objectives.embedding import EmbeddingDistillation
from sapp_cli.training.objectives.fit import check_fits
from sapp_cli.training.objectives.forward import Inputs
from sapp_cli.training.objectives.language_model import LanguageModel
from sapp_cli.training.objectives.objective import LossResult, Objective, Sums
from sapp_cli.training.objectives.regression import Regression
from sapp_cli.training.objectives.supervised import Supervised, Task

__all__ = ["LossResult", "Objective", "Sums", "check_fits", "make_objective"]


def make_objective(section: ObjectiveSection, model: nn.Module) -> Objective:
    """The objective of a recipe for a model that no engine has wrapped yet: what its forward takes is read from it.

    Raises SettingError for settings that do not go together.
    """
    if section.task == "factory":
        return _custom(section)
    inputs = Inputs.of(model)
    if section.task == "embedding-distillation":
        if section.distill.weight > 0:
            problem = "embedding-distillation is distillation already; leave it 0"
            raise SettingError([("objective.distill.weight", problem)])
        return EmbeddingDistillation(inputs, section.pooling or "mean", section.distill.hidden_states)
    tasks: dict[str, Task] = {
        "classification": Classification(section.label_smoothing),
        "regression": Regression(),
        "binary": Binary(),
        "causal-lm": LanguageModel(causal=True),
        "masked-lm": LanguageModel(causal=False),
    }
    return Supervised(tasks[section.task], inputs, section.distill)


def _custom(section: ObjectiveSection) -> Objective:
    assert section.factory is not None, "the schema asks for one"
    if section.distill.hidden_states > 0:
        problem = "a factory makes the whole loss, distillation of hidden states included; leave it out"
        raise SettingError([("objective.distill.hidden_states", problem)])
    loss = load_factory(section.factory, "objective.factory")
    wants_teacher = section.distill.weight > 0 or section.distill.teacher is not None
    if wants_teacher and not _takes_teacher(loss):
        problem = f"'{section.factory}' has no parameter 'teacher'; add one, or leave objective.distill out"
        raise SettingError([("objective.distill", problem)])
    try:
        inspect.signature(loss).bind("model", "batch", **({"teacher": None} if wants_teacher else {}))
    except TypeError as error:
        called = "(model, batch, teacher=…)" if wants_teacher else "(model, batch)"
        problem = f"'{section.factory}': {error}; it is called with {called}"
        raise SettingError([("objective.factory", problem)]) from error
    except ValueError:
        pass  # a callable written in C says nothing of its arguments
    return Custom(loss, section.factory, section.higher_is_better, needs_teacher=wants_teacher)


def _takes_teacher(loss: Callable[..., Any]) -> bool:
    """True if the callable has a parameter of that name, or takes any."""
    try:
        parameters = inspect.signature(loss).parameters
    except ValueError:
        return True  # a callable written in C says nothing of its arguments
    return "teacher" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
