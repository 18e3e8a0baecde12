"""How a checkpoint's tensors stand for those of a model that is already there."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.models import built_by_library, candidate_names, dense_state, origins, same_values
from sapp_cli.inputs.wrapped_names import unwrapped, without_wrappers
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.saved_state import BLOCKS, ELSEWHERE, stored_shape


@dataclass(frozen=True)
class Fit:
    """Which tensor goes where."""

    names: Mapping[str, str]
    """Checkpoint's name -> name in model.state_dict(), of those that go in as they are stored."""
    made: Mapping[str, Tensor] = field(default_factory=dict)
    """Name in model.state_dict() -> what the model's library made of the checkpoint's tensors for it."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Those of the model's state dict, not copied; for a block-sparse layer the dense ones, on the meta device."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, BlockSparseConv):
            shape = module.out_channels, module.in_channels, *module.kernel_size
            _replace_blocks(state, prefix, f"{prefix}matrix.", torch.empty(shape, device="meta"), module.bias)
        elif isinstance(module, BlockSparseLinear) and module.stored != ELSEWHERE:
            _replace_blocks(state, prefix, prefix, torch.empty(stored_shape(module), device="meta"), module.bias)
    return state


def _replace_blocks(state: dict[str, Tensor], prefix: str, inside: str, weight: Tensor, bias: Tensor | None) -> None:
    for name in (*BLOCKS, "bias"):
        state.pop(f"{inside}{name}", None)
    state[f"{prefix}weight"] = weight
    if bias is not None:
        state[f"{prefix}bias"] = bias


def fit(checkpoint: Checkpoint, model: nn.Module) -> Fit:
    """By name: a prefix may come or go, gamma and beta be weight and bias. Where that is not enough and the model is one
    of transformers, the library loads a second model from the checkpoint, and tells by marked tensors what came from where.

    A head that a checkpoint of the bare model lacks stays as it is, with a warning. Raises CheckpointError for all else
    that the checkpoint lacks, or that has another shape.
    """
    names, problems = _by_name(checkpoint, model)
    missing = _missing(model, set(names.values()))
    found = Fit(names)
    by_library = _by_library(checkpoint, model) if (problems or missing) and from_transformers(model) else None
    if by_library is not None:
        found, missing = by_library
    elif problems or not _is_head(model, missing):
        problems += [f"the checkpoint has no '{name}'" for name in missing]
        shown = [*problems[:8], *([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])]
        listed = "\n".join(f"  {text}" for text in shown)
        raise CheckpointError(f"{checkpoint.path} does not fit this {type(model).__name__}:\n{listed}")
    state = tensors_of(model)
    if any(state[name].is_meta for name in missing):
        raise CheckpointError(
            f"{checkpoint.path} has no {_listed(missing)}: expected all weights of a {type(model).__name__} on the meta device"
            "; "
            "take the class that belongs to the checkpoint, or build the model on a CPU, where its head starts at random"
        )
    if missing:
        warnings.warn(
            f"{checkpoint.path} has no {_listed(missing)}: what the {type(model).__name__} has there stays",
            stacklevel=3,
        )
    return found


def _by_name(checkpoint: Checkpoint, model: nn.Module) -> tuple[dict[str, str], list[str]]:
    """(Names that agree, what has another shape)."""
    state = tensors_of(model)
    prefix = getattr(model, "base_model_prefix", "")
    own = {without_wrappers(name): name for name in state}  # a part of the model may be compiled
    given = (*checkpoint.dense_names(), *checkpoint.tied)
    plain = unwrapped(given, lambda name: not own.keys().isdisjoint(candidate_names(name, prefix)))
    names: dict[str, str] = {}
    problems = []
    for name in given:
        known = next((own[candidate] for candidate in candidate_names(plain[name], prefix) if candidate in own), None)
        if known is None:
            continue  # a head that this model does not have
        names[name] = known
        if tuple(state[known].shape) != checkpoint.shape(name):
            problems.append(f"'{name}' is {checkpoint.shape(name)}, the model wants {tuple(state[known].shape)}")
    return names, problems


def _missing(model: nn.Module, given: set[str]) -> list[str]:
    """The floating tensors of the model that are not given under any of their names."""
    state = tensors_of(model)
    places = {_place(state[name]) for name in given}
    return [name for name, tensor in state.items() if tensor.is_floating_point() and _place(tensor) not in places]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for the two names of a tied weight."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape


def _is_head(model: nn.Module, missing: list[str]) -> bool:
    """True if nothing of the bare model inside the model is missing."""
    prefix = getattr(model, "base_model_prefix", "")
    inside = [name for name in missing if not (prefix and hasattr(model, prefix)) or name.startswith(f"{prefix}.")]
    return not inside


def from_transformers(model: nn.Module) -> bool:
    """True for a model of that library."""
    transformers = sys.modules.get("transformers")  # a model of it cannot be without it
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _by_library(checkpoint: Checkpoint, model: Any) -> tuple[Fit, list[str]] | None:
    """What the library does when it loads the checkpoint, and what is missing; None where that is more than a head."""
    state = dense_state(checkpoint)

    def build(state: Mapping[str, Tensor]) -> Any:
        return built_by_library(checkpoint, type(model), copy.deepcopy(model.config), state)

    try:
        built = build(state)
    except CheckpointError:
        return None
    own = tensors_of(model)
    missing = [name for name in own if name in built.missing]
    if not _is_head(model, missing):
        return None
    made = {name: tensor for name, tensor in built.model.state_dict().items() if name not in built.missing}
    if any(tensor.shape != made[name].shape for name, tensor in own.items() if name in made):
        return None
    names = {
        name: known
        for known, name in origins(state, build).items()
        if known in made and same_values(made[known], state[name])
    }
    as_stored = set(names.values())
    return Fit(names, {known: tensor for known, tensor in made.items() if known not in as_stored}), missing
