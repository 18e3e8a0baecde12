"""`sapp.load`: a checkpoint's weights in the user's own model, pruned Linear layers computed block-sparse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix, encode, to_matrix
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid
from sapp_cli.inputs.models import dense_tensor
from sapp_cli.layers import matrix_layout
from sapp_cli.runtime.linear import BlockSparseLinear

Model = TypeVar("Model", bound=nn.Module)

MOST_KEPT = 0.7
"""With a larger share of blocks kept, a dense layer is as fast and no larger."""
LEAST_WEIGHTS = 1 << 14
"""Of a smaller weight the calls cost more than the multiplications."""


def load(model: Model, path: str | Path, way: str | None = None) -> Model:
    """The model, with the checkpoint's weights in it and `BlockSparseLinear` where a pruned layer gains by it.

    `path` is an output of `sapp prune`, its `sparse/`, or any other checkpoint, from which all layers stay dense. Replaced are
    `torch.nn.Linear` and GPT-2's `Conv1D`; other pruned layers get their weights with the zeros in place. Parameters
    keep the dtype and device that they have in the model. `way`: see `BlockSparseLinear`.

    Raises CheckpointError for whatever is missing, damaged, or does not fit the model; the model is unchanged then.
    """
    checkpoint = _sparse_one(Path(path))
    names = _map_names(checkpoint, model)
    pruned = dict(_pruned_layers(checkpoint, model, names))
    state = {known: _tensor(checkpoint, name) for name, known in names.items() if known not in pruned}
    model.load_state_dict(state, strict=False)
    for layer in pruned.values():
        parent, _, attribute = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.replacement(way))
    return model


@dataclass(frozen=True)
class _PrunedLayer:
    """A layer to be replaced, and its weight."""

    name: str
    module: nn.Module
    sparse: BlockSparseMatrix
    grid: BlockGrid
    dtype: str  # of the values, as safetensors call it
    bias: Tensor | None  # of the checkpoint

    def replacement(self, way: str | None) -> BlockSparseLinear:
        weight = self.module.weight
        assert isinstance(weight, Tensor), "found by its weight"
        values = self.sparse.values
        if self.dtype != "F64":
            values = DTYPES[self.dtype].to_float32(values)
        sparse = BlockSparseMatrix(values, self.sparse.crow, self.sparse.col)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        layer = BlockSparseLinear.from_matrix(sparse, self.grid, bias, weight.dtype, way).to(weight.device)
        return layer.train(self.module.training)


def _sparse_one(path: Path) -> Checkpoint:
    """The block-sparse half of an output, if it has one: the least to read."""
    if (path / "manifest.json").is_file() and (path / "sparse").is_dir():
        return open_checkpoint(path / "sparse")
    return open_checkpoint(path)


def _map_names(checkpoint: Checkpoint, model: nn.Module) -> dict[str, str]:
    """Checkpoint's name -> name in model.state_dict(); a prefix may come or go, gamma and beta be weight and bias."""
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    problems = []
    for name in (*checkpoint.dense_names(), *checkpoint.tied):
        known = next((candidate for candidate in _candidates(name, prefix) if candidate in state), None)
        if known is None:
            continue  # a head that this model does not have
        names[name] = known
        if tuple(state[known].shape) != checkpoint.shape(name):
            problems.append(f"'{name}' is {checkpoint.shape(name)}, the model wants {tuple(state[known].shape)}")
    given = {_place(state[known]) for known in names.values()}
    wanted = [name for name, tensor in state.items() if tensor.is_floating_point()]
    problems += [f"the checkpoint has no '{name}'" for name in wanted if _place(state[name]) not in given]
    if problems:
        shown = [*problems[:8], *([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])]
        raise CheckpointError(
            f"{checkpoint.path} does not fit this {type(model).__name__}:\n" + "\n".join(f"  {text}" for text in shown)
        )
    return names


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for the two names of a tied weight."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape


def _candidates(name: str, prefix: str) -> list[str]:
    found = [name]
    if prefix:
        found += [name.removeprefix(f"{prefix}."), f"{prefix}.{name}"]
    head, _, last = name.rpartition(".")
    renamed = {"gamma": "weight", "beta": "bias"}.get(last)
    return found if renamed is None else found + _candidates(f"{head}.{renamed}", prefix)


def _pruned_layers(
    checkpoint: Checkpoint, model: nn.Module, names: dict[str, str]
) -> Iterator[tuple[str, _PrunedLayer]]:
    """(name of the weight in the model, what replaces its layer)."""
    blocks = _blocks(checkpoint)
    shared = _shared_weights(model)
    stored_names = {known: name for name, known in reversed(names.items())}
    for module_name, module in model.named_modules():
        known = f"{module_name}.weight" if module_name else ""
        stored = checkpoint.tied.get(stored_names.get(known, ""), stored_names.get(known, ""))
        if stored not in blocks or id(module.weight) in shared or not replaceable(model, module_name):
            continue
        layout = matrix_layout(module, "weight")
        assert layout is not None, "a Linear is a matrix"
        grid = BlockGrid(layout.matrix, blocks[stored])
        if stored in checkpoint.block_sparse:
            sparse = checkpoint.matrix(stored)
        else:
            sparse = encode(to_matrix(checkpoint.dense_array(stored), layout), grid, DTYPES[checkpoint.dtype(stored)])
        if len(sparse.col) > MOST_KEPT * grid.count or layout.matrix[0] * layout.matrix[1] < LEAST_WEIGHTS:
            continue
        bias_name = stored_names.get(f"{module_name}.bias")
        bias = None if bias_name is None else _tensor(checkpoint, bias_name)
        yield known, _PrunedLayer(module_name, module, sparse, grid, checkpoint.dtype(stored), bias)


def replaceable(model: nn.Module, name: str) -> bool:
    """True for a Linear or Conv1D inside the model, and nothing derived from them, which may compute something else."""
    if not name or isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return False  # such a layer hands the weights of its parts to one fused operator
    module = model.get_submodule(name)
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _shared_weights(model: nn.Module) -> set[int]:
    """Identities of parameters that have several names: what replaces one place must not lose the other."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _blocks(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """{stored name: block} of the pruned weights: as the file has them, or as the report beside a dense output says."""
    if checkpoint.block_sparse:
        return {name: entry.grid.block for name, entry in checkpoint.block_sparse.items()}
    report = None if checkpoint.folder is None else checkpoint.folder / "sparsity.json"
    if report is None or not report.is_file():
        return {}
    try:
        layers = json.loads(report.read_text(encoding="utf-8"))["layers"]
        return {layer["name"]: (int(layer["block"][0]), int(layer["block"][1])) for layer in layers if layer["pruned"]}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{report}: is no report of sapp; remove it, or run `sapp report` again") from error


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint, dense; float64 as it is, all other floats as float32."""
    if checkpoint.dtype(name) == "F64":
        return torch.from_numpy(np.array(checkpoint.dense_array(name)))
    return dense_tensor(checkpoint, name)
