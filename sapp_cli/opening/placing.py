"""Where a model of transformers has taken markers for weights, and what comes there instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sapp_cli.checkpoint.block_sparse_file import BlockSparseEntry
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import LayoutKind, MatrixLayout
from sapp_cli.inputs.models import candidate_names
from sapp_cli.runtime.load import CONVOLUTIONS, PrunedLayer, kept_blocks_of, obstacle, stored_tensor, too_little_to_gain


@dataclass(frozen=True)
class Loading:
    """Of one call of `from_pretrained`, between the look at the model without values and the one at the model with them."""

    checkpoint: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    """Of the model's parameters."""
    expected: frozenset[str]
    """Those of them that may become a marker."""
    ignored: Any
    """The model's own patterns of names that the library does not warn about."""


@dataclass(frozen=True)
class _Owner:
    """A parameter of the model: the module that has it, and its name there."""

    module_name: str
    module: nn.Module
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.module_name}.{self.attribute}" if self.module_name else self.attribute


def expected_names(checkpoint: Checkpoint, model: Any, known: Iterable[str]) -> frozenset[str]:
    """The names in the model that the checkpoint's pruned weights may have: with or without a prefix, or as renamed.

    Raises CheckpointError for weights without a marker, which an early sapp wrote: the library could not say where they go.
    """
    known = set(known)
    found = set()
    for name, entry in checkpoint.block_sparse.items():
        if entry.marker is None:
            raise CheckpointError(
                f"{checkpoint.path}: '{name}' has no marker, expected one, as files of format version 2 have; "
                "write the folder anew: sapp export"
            )
        found.update(known.intersection((*candidate_names(name, model.base_model_prefix), _renamed(model, name))))
    return frozenset(found)


def _renamed(model: Any, name: str) -> str:
    """The name as the library changes it for this model; as it is, where the library has no such function."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return name
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    renamed: str = rename_source_key(name, renamings, [], model.base_model_prefix, model.state_dict())[0]
    return renamed


def put_weights(model: nn.Module, loading: Loading) -> dict[str, str]:
    """Block-sparse layers, or dense weights, in the place of markers; {layer: why it stays dense although it is pruned}.

    Raises CheckpointError for a weight of another shape than the model has.
    """
    entries = {entry.marker: entry for entry in loading.checkpoint.block_sparse.values()}
    dense = {}
    for owners in _markers(model, loading).values():
        marker = owners[0].module._parameters[owners[0].attribute]
        assert marker is not None, "found among the parameters"
        entry = entries[marker.shape[2]]
        wanted = loading.shapes[owners[0].name]
        if entry.shape != wanted:
            raise CheckpointError(
                f"{loading.checkpoint.path}: '{entry.name}' is {entry.shape}, the model wants {wanted}; a pruned weight cannot "
                "start anew: load the dense folder instead, or leave the sizes as they are"
            )
        why = _why_dense(model, owners, entry)
        if why is None:
            _replace(model, owners[0], entry, loading.checkpoint)
        else:
            dense.update({owner.module_name: why for owner in owners[:1]})
            _fill(owners, marker, stored_tensor(loading.checkpoint, entry.name))
    return dense


def _markers(model: nn.Module, loading: Loading) -> dict[int, list[_Owner]]:
    """Marker -> all that hold it."""
    found: dict[int, list[_Owner]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            owner = _Owner(module_name, module, attribute)
            if parameter is None or owner.name not in loading.shapes:
                continue
            if (
                parameter.dim() == 3
                and parameter.shape[1] == 0
                and tuple(parameter.shape) != loading.shapes[owner.name]
            ):
                found.setdefault(id(parameter), []).append(owner)
    return found


def _why_dense(model: nn.Module, owners: list[_Owner], entry: BlockSparseEntry) -> str | None:
    module = owners[0].module
    if owners[0].attribute != "weight":
        return f"it is the {owners[0].attribute} of its module"
    if len({id(owner.module) for owner in owners}) < len(owners):
        return "its module has several names"
    if len(owners) > 1:
        return "its weight has several names"
    return obstacle(model, owners[0].module_name) or too_little_to_gain(module, entry.kept, entry.grid)


def _kind(module: nn.Module) -> LayoutKind:
    """How the weight of a module that can be replaced is a matrix."""
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    return "linear" if isinstance(module, nn.Linear) else "transposed"


def _replace(model: nn.Module, owner: _Owner, entry: BlockSparseEntry, checkpoint: Checkpoint) -> None:
    """The layer of the weight's blocks, on the device and in the dtype that the marker has come in."""
    bias, layout = owner.module.bias, MatrixLayout(_kind(owner.module), entry.shape)
    sparse, grid = kept_blocks_of(checkpoint, entry.name, layout, entry.grid.block)
    layer = PrunedLayer(
        name=owner.module_name,
        module=owner.module,
        sparse=sparse,
        grid=grid,
        dtype=entry.dtype,
        bias=bias.detach() if isinstance(bias, Tensor) else None,
        transposed=layout.kind == "transposed",
    )
    parent, _, attribute = owner.module_name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer.replacement(None))


def _fill(owners: list[_Owner], marker: nn.Parameter, weight: Tensor) -> None:
    """The dense weight, one for all that share it."""
    filled = nn.Parameter(weight.to(marker.device, marker.dtype), requires_grad=marker.requires_grad)
    for owner in owners:
        setattr(owner.module, owner.attribute, filled)
