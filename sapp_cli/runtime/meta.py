"""A model on the meta device, which has shapes and no values: the cheap way to load, for nothing is made at random first."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.runtime.names import from_transformers


@dataclass(frozen=True)
class Filling:
    """A tensor on the meta device, and what takes its place."""

    names: tuple[str, ...]
    """All of its names in the model."""
    owners: tuple[tuple[nn.Module, str], ...]
    """The modules that hold it, each with its attribute."""
    tensor: Tensor

    def fill(self) -> None:
        """Put the tensor in, in the dtype that the model has."""
        module, attribute = self.owners[0]
        own = getattr(module, attribute)
        filled = self.tensor.to(own.dtype)
        if isinstance(own, nn.Parameter):
            filled = nn.Parameter(filled, requires_grad=own.requires_grad)
        for module, attribute in self.owners:
            setattr(module, attribute, filled)


def fillings(model: nn.Module, state: Mapping[str, Tensor], replaced: set[str], path: Path) -> list[Filling]:
    """For each tensor on the meta device, but those of `replaced` names, what the state has under one of its names.

    Buffers that no file holds, such as the frequencies of rotary embeddings, come from a second model of the same class and
    configuration, if it is one of transformers. Raises CheckpointError for all else that the state lacks.
    """
    found, empty = [], []
    for names, owners in _on_meta(model):
        if replaced.intersection(names):
            continue
        given = next((state[name] for name in names if name in state), None)
        if given is None:
            empty.append((names, owners))
        else:
            found.append(Filling(names, owners, given))
    if not empty:
        return found
    computed = _computed_buffers(model) if from_transformers(model) else {}
    missing = []
    for names, owners in empty:
        shape = getattr(*owners[0]).shape
        tensor = next((computed[name] for name in names if name in computed and computed[name].shape == shape), None)
        if tensor is None:
            missing.append(names[0])
        else:
            found.append(Filling(names, owners, tensor))
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(missing)}, which this {type(model).__name__} on the meta device has without values: "
            "expected values from its constructor; build the model without torch.device('meta')"
        )
    return found


def _on_meta(model: nn.Module) -> list[tuple[tuple[str, ...], tuple[tuple[nn.Module, str], ...]]]:
    """(names, owners) of each tensor."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and tensor.is_meta:
                name = f"{module_name}.{attribute}" if module_name else attribute
                places.setdefault(id(tensor), []).append((name, module, attribute))
    return [
        (tuple(name for name, _, _ in found), tuple((module, attribute) for _, module, attribute in found))
        for found in places.values()
    ]


def _computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a model's constructor makes of its configuration. No memory is taken for parameters."""
    from accelerate import init_empty_weights

    with offline_transformers(), torch.device("cpu"), init_empty_weights(include_buffers=False):
        twin: nn.Module = type(model)(copy.deepcopy(model.config))
    return {name: buffer for name, buffer in twin.named_buffers(remove_duplicate=False) if not buffer.is_meta}
