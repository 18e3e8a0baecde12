"""`sapp.load`: a checkpoint's weights in the user's own model, pruned layers computed block-sparse."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix, encode, to_matrix
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import CheckpointError, UsageError
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.inputs.models import dense_tensor, empty_model
from sapp_cli.layers import matrix_layout
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.meta import fillings
from sapp_cli.runtime.names import Fit, fit
from sapp_cli.runtime.saved_state import LINEAR, TRANSPOSED

Model = TypeVar("Model", bound=nn.Module)

LOG = logging.getLogger("sapp")

MOST_KEPT = 0.7
"""With a larger share of blocks kept, a dense layer is as fast and no larger."""
LEAST_WEIGHTS = 1 << 14
"""Of a smaller Linear the calls cost more than the multiplications."""
LEAST_CONV_WEIGHTS = 1 << 10
"""The same of a convolution, which uses each weight for many pixels."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@overload
def load(model: Model, path: str | Path, way: str | None = None, *, keep_blocks: bool = False) -> Model: ...


@overload
def load(model: str | Path, *, way: str | None = None, keep_blocks: bool = False) -> nn.Module: ...


def load(
    model: nn.Module | str | Path, path: str | Path | None = None, way: str | None = None, *, keep_blocks: bool = False
) -> nn.Module:
    """The model, with the checkpoint's weights in it and block-sparse layers where a pruned one gains by it.

    `path` is an output of `sapp prune`, its `sparse/`, or any other checkpoint, from which all layers stay dense. Replaced are
    `torch.nn.Linear`, GPT-2's `Conv1D`, and convolutions of one group, by `BlockSparseConv`; other pruned layers get their
    weights with the zeros in place, and one line of the logger "sapp" names them. Parameters keep the dtype and device that
    they have in the model; what is on the meta device comes to be on the CPU. `way`: see `BlockSparseLinear`.

    `load("OUT")` with a Hugging Face folder alone builds the model that its config.json names, in evaluation mode, in the dtype
    named there.

    `model.state_dict()`, and so `save_pretrained`, gives the dense weights, which any library reads. With `keep_blocks` it
    gives the blocks instead, which only a model that sapp has loaded reads.

    Names that the model's library changes on loading are followed, and those that DataParallel, torch.compile and others that
    hold a model add, on either side. What a checkpoint of a bare model lacks, a head, stays
    as it is in the model, with a warning.

    Raises CheckpointError for whatever is missing, damaged, or does not fit the model; the model is unchanged then.
    """
    if isinstance(model, nn.Module):
        if path is None:
            raise UsageError("sapp.load: a model alone, expected where its weights are; call sapp.load(model, OUT)")
        into, source = model, Path(path)
    else:
        if path is not None:
            raise UsageError(
                f"sapp.load: the model is {model!r}, expected a torch.nn.Module; call sapp.load(model, OUT)"
            )
        into, source = empty_model(open_checkpoint(_folder_with_config(Path(model)))), Path(model)
    dense = load_and_explain(into, source, way, keep_blocks=keep_blocks)
    if dense:
        LOG.warning("%s: %s", source, described(dense))
    return into


def load_and_explain(
    model: nn.Module, path: str | Path, way: str | None = None, *, keep_blocks: bool = False
) -> dict[str, str]:
    """Do what `load` does; {name of a layer: why it stays dense although it is pruned}."""
    model = _within_wrappers(model)
    checkpoint = _sparse_one(Path(path))
    for note in checkpoint.notes:
        warnings.warn(note, stacklevel=3)
    found = fit(checkpoint, model)
    replaced, dense = {}, {}
    for name, layer in _pruned_layers(checkpoint, model, found):
        if isinstance(layer, str):
            dense[name] = layer
        else:
            replaced[f"{name}.weight"] = layer
    state = {
        **found.made,
        **{known: stored_tensor(checkpoint, name) for name, known in found.names.items() if known not in replaced},
    }
    gone = {f"{layer.name}.{attribute}" for layer in replaced.values() for attribute in ("weight", "bias")}
    filled = fillings(model, state, gone, checkpoint.path)
    for filling in filled:
        filling.fill()
    done = gone.union(*(filling.names for filling in filled))
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in done}, strict=False)
    for layer in replaced.values():
        parent, _, attribute = layer.name.rpartition(".")
        replacement = layer.replacement(way)
        replacement.keeps_blocks = keep_blocks
        setattr(model.get_submodule(parent), attribute, replacement)
    return dense


def _within_wrappers(model: nn.Module) -> nn.Module:
    """The model within DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def described(dense: Mapping[str, str]) -> str:
    """One line: "3 pruned layers stay dense: 'a' and 1 more (it has 256 weights only), 'c' (…); sapp bench lists them"."""
    by_reason: dict[str, list[str]] = {}
    for name, why in dense.items():
        by_reason.setdefault(why, []).append(name)
    shown = ", ".join(
        f"'{names[0]}'{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({why})"
        for why, names in list(by_reason.items())[:3]
    )
    others = len(by_reason) - 3
    more = f" and {others} more reasons" if others > 1 else " and 1 more reason" if others == 1 else ""
    layers = "pruned layer stays" if len(dense) == 1 else "pruned layers stay"
    return f"{len(dense)} {layers} dense: {shown}{more}; sapp bench lists them"


def _folder_with_config(path: Path) -> Path:
    """An output's own folder for its `sparse/`, which may have no config.json."""
    inside = path.name == "sparse" and not (path / "config.json").is_file()
    return path.parent if inside and (path.parent / "manifest.json").is_file() else path


@dataclass(frozen=True)
class PrunedLayer:
    """A layer to be replaced, and its weight."""

    name: str
    module: nn.Module
    sparse: BlockSparseMatrix
    grid: BlockGrid
    dtype: str  # of the values, as safetensors call it
    bias: Tensor | None  # of the checkpoint
    transposed: bool  # stored (in, out)

    def replacement(self, way: str | None) -> BlockSparseLinear | BlockSparseConv:
        weight = self.module.weight
        assert isinstance(weight, Tensor), "found by its weight"
        values = self.sparse.values
        if self.dtype != "F64":
            values = DTYPES[self.dtype].to_float32(values)
        sparse = BlockSparseMatrix(values, self.sparse.crow, self.sparse.col)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        layer: BlockSparseLinear | BlockSparseConv
        if isinstance(self.module, CONVOLUTIONS):
            layer = BlockSparseConv.from_matrix(self.module, sparse, self.grid, bias, weight.dtype, way)
        else:
            layer = BlockSparseLinear.from_matrix(sparse, self.grid, bias, weight.dtype, way)
            layer.stored = TRANSPOSED if self.transposed else LINEAR
        device = torch.device("cpu") if weight.is_meta else weight.device
        return layer.to(device).train(self.module.training)


def _sparse_one(path: Path) -> Checkpoint:
    """The block-sparse half of an output, if it has one: the least to read."""
    if (path / "manifest.json").is_file() and (path / "sparse").is_dir():
        return open_checkpoint(path / "sparse")
    return open_checkpoint(path)


def _pruned_layers(checkpoint: Checkpoint, model: nn.Module, found: Fit) -> Iterator[tuple[str, PrunedLayer | str]]:
    """(name, what replaces it or why nothing does) of each layer with a pruned weight."""
    blocks = _blocks(checkpoint)
    shared = _shared_weights(model)
    stored_names = {known: name for name, known in reversed(list(found.names.items()))}
    for module_name, module in model.named_modules():
        known = f"{module_name}.weight" if module_name else "weight"
        stored = checkpoint.tied.get(stored_names.get(known, ""), stored_names.get(known, ""))
        if stored not in blocks:
            continue
        if isinstance(module, BlockSparseLinear | BlockSparseConv):
            continue  # takes the blocks out of a dense weight itself
        why = obstacle(model, module_name)
        if why is None and id(module.weight) in shared:
            why = "its weight has several names"
        if why is not None:
            yield module_name, why
            continue
        layout = matrix_layout(module, "weight")
        assert layout is not None, "a Linear or a convolution is a matrix"
        sparse, grid = kept_blocks_of(checkpoint, stored, layout, blocks[stored])
        why = too_little_to_gain(module, len(sparse.col), grid)
        if why is not None:
            yield module_name, why
            continue
        bias = _bias(checkpoint, found, stored_names.get(f"{module_name}.bias"), module_name, module)
        transposed = layout.kind == TRANSPOSED
        yield module_name, PrunedLayer(module_name, module, sparse, grid, checkpoint.dtype(stored), bias, transposed)


def kept_blocks_of(
    checkpoint: Checkpoint, name: str, layout: MatrixLayout, block: tuple[int, int]
) -> tuple[BlockSparseMatrix, BlockGrid]:
    """A weight's blocks as the layer wants them, also of a file that has the transposed matrix.

    Without the model, nothing tells that a `Conv1D` is stored in × out: `sapp export` takes it for a Linear.
    """
    entry = checkpoint.block_sparse.get(name)
    if entry is not None and entry.layout.kind == layout.kind:
        return checkpoint.matrix(name), entry.grid
    grid = BlockGrid(layout.matrix, block if entry is None else block[::-1])
    return encode(to_matrix(checkpoint.dense_array(name), layout), grid, DTYPES[checkpoint.dtype(name)]), grid


def _bias(checkpoint: Checkpoint, found: Fit, stored: str | None, name: str, module: nn.Module) -> Tensor | None:
    """As the checkpoint has it, as the library made it of the checkpoint, or, where that lacks it, the model's own."""
    if stored is not None:
        return stored_tensor(checkpoint, stored)
    bias = found.made.get(f"{name}.bias", module.bias)
    return bias.detach() if isinstance(bias, Tensor) else None


def obstacle(model: nn.Module, name: str) -> str | None:
    """Why this module cannot be replaced whatever its weight; None for those that can: Linear, Conv1D, convolutions.

    Classes derived from them may compute something else.
    """
    module = model.get_submodule(name)
    if not name:
        return "it is the model itself"
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return "its TransformerEncoderLayer hands weights to one fused operator"
    if type(module) in CONVOLUTIONS:
        groups = module.groups
        return None if groups == 1 else f"it is a convolution of {groups} groups"
    if type(module) is nn.Linear or type(module).__name__ == "Conv1D":
        return None
    return f"it is of the class {type(module).__name__}"


def too_little_to_gain(module: nn.Module, kept: int, grid: BlockGrid) -> str | None:
    """Why a weight with so many kept blocks had better stay dense; None if it may gain."""
    weights, least = math.prod(grid.matrix), LEAST_CONV_WEIGHTS if isinstance(module, CONVOLUTIONS) else LEAST_WEIGHTS
    if weights < least:
        return f"it has {weights:,} weights only"
    if kept > MOST_KEPT * grid.count:
        return f"it keeps {kept:,} of {grid.count:,} blocks"
    return None


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
        raise CheckpointError(f"{report}: is no report of sapp; remove it") from error


def stored_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint, dense; float64 as it is, all other floats as float32."""
    if checkpoint.dtype(name) == "F64":
        return torch.from_numpy(np.array(checkpoint.dense_array(name)))
    return dense_tensor(checkpoint, name)
