"""How a checkpoint's tensors stand for those of a model that is already there."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.models import built_by_library, candidate_names, dense_tensor, origins, same_values


@dataclass(frozen=True)
class Fit:
    """Which tensor goes where."""

    names: Mapping[str, str]
    """Checkpoint's name -> name in model.state_dict(), of those that go in as they are stored."""
    made: Mapping[str, Tensor] = field(default_factory=dict)
    """Name in model.state_dict() -> what the model's library made of the checkpoint's tensors for it."""


def fit(checkpoint: Checkpoint, model: nn.Module) -> Fit:
    """By name: a prefix may come or go, gamma and beta be weight and bias. Where that is not enough and the model is one
    of transformers, the library loads a second model from the checkpoint, and tells by marked tensors what came from where.

    A head that a checkpoint of the bare model lacks stays as it is, with a warning. Raises CheckpointError for all else
    that the checkpoint lacks, or that has another shape.
    """
    names, problems = _by_name(checkpoint, model)
    missing = _missing(model, set(names.values()))
    found = Fit(names)
    by_library = _by_library(checkpoint, model) if (problems or missing) and _from_transformers(model) else None
    if by_library is not None:
        found, missing = by_library
    elif problems or not _is_head(model, missing):
        problems += [f"the checkpoint has no '{name}'" for name in missing]
        shown = [*problems[:8], *([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])]
        listed = "\n".join(f"  {text}" for text in shown)
        raise CheckpointError(f"{checkpoint.path} does not fit this {type(model).__name__}:\n{listed}")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(
            f"{checkpoint.path} has no {', '.join(missing[:3])}{more}: what the {type(model).__name__} has there stays",
            stacklevel=3,
        )
    return found


def _by_name(checkpoint: Checkpoint, model: nn.Module) -> tuple[dict[str, str], list[str]]:
    """(Names that agree, what has another shape)."""
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    problems = []
    for name in (*checkpoint.dense_names(), *checkpoint.tied):
        known = next((candidate for candidate in candidate_names(name, prefix) if candidate in state), None)
        if known is None:
            continue  # a head that this model does not have
        names[name] = known
        if tuple(state[known].shape) != checkpoint.shape(name):
            problems.append(f"'{name}' is {checkpoint.shape(name)}, the model wants {tuple(state[known].shape)}")
    return names, problems


def _missing(model: nn.Module, given: set[str]) -> list[str]:
    """The floating tensors of the model that are not given under any of their names."""
    state = model.state_dict()
    places = {_place(state[name]) for name in given}
    return [name for name, tensor in state.items() if tensor.is_floating_point() and _place(tensor) not in places]


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for the two names of a tied weight."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape


def _is_head(model: nn.Module, missing: list[str]) -> bool:
    """True if nothing of the bare model inside the model is missing."""
    prefix = getattr(model, "base_model_prefix", "")
    inside = [name for name in missing if not (prefix and hasattr(model, prefix)) or name.startswith(f"{prefix}.")]
    return not inside


def _from_transformers(model: nn.Module) -> bool:
    transformers = sys.modules.get("transformers")  # a model of it cannot be without it
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _by_library(checkpoint: Checkpoint, model: Any) -> tuple[Fit, list[str]] | None:
    """What the library does when it loads the checkpoint, and what is missing; None where that is more than a head."""
    state = {name: dense_tensor(checkpoint, name) for name in checkpoint.dense_names()}
    for alias, stored in checkpoint.tied.items():
        state.setdefault(alias, state[stored])

    def build(state: Mapping[str, Tensor]) -> Any:
        return built_by_library(checkpoint, type(model), copy.deepcopy(model.config), state)

    try:
        built = build(state)
    except CheckpointError:
        return None
    missing = [name for name in model.state_dict() if name in built.missing]
    if not _is_head(model, missing):
        return None
    made = {name: tensor for name, tensor in built.model.state_dict().items() if name not in built.missing}
    if any(tensor.shape != made[name].shape for name, tensor in model.state_dict().items() if name in made):
        return None
    names = {
        name: known
        for known, name in origins(state, build).items()
        if known in made and same_values(made[known], state[name])
    }
    as_stored = set(names.values())
    return Fit(names, {known: tensor for known, tensor in made.items() if known not in as_stored}), missing
