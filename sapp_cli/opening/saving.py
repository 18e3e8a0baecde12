"""What `save_pretrained` writes of a model with block-sparse layers: the block-sparse format again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sapp_cli.checkpoint.block_sparse_file import SUFFIXES, block_sparse_metadata
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.saved_state import BLOCKS, ELSEWHERE, TRANSPOSED, stored_shape

Layer = BlockSparseLinear | BlockSparseConv


def blocks_of_model(model: nn.Module) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """(State dict, metadata of the file): each block-sparse layer as its blocks and a marker, no dense copy of it is made.

    (None, {}) for a model without such a layer: its own state dict will do.
    """
    layers = {f"{name}.": layer for name, layer in _layers(model)}
    if not layers:
        return None, {}
    with _as_blocks(list(layers.values())):
        state = model.state_dict()
    weights = {}
    for number, (prefix, layer) in enumerate(layers.items(), 1):
        inside = f"{prefix}matrix." if isinstance(layer, BlockSparseConv) else prefix
        for block, suffix in zip(BLOCKS, SUFFIXES, strict=True):
            state[f"{prefix}weight{suffix}"] = state.pop(f"{inside}{block}").contiguous()
        layout, grid = _blocks(layer)
        state[f"{prefix}weight"] = state[f"{prefix}weight{SUFFIXES[0]}"].new_empty((layout.shape[0], 0, number))
        if inside != prefix and f"{inside}bias" in state:
            state[f"{prefix}bias"] = state.pop(f"{inside}bias")
        weights[_saved_name(model, f"{prefix}weight", state)] = layout, grid
    return state, block_sparse_metadata(weights, {}, marked=True)


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Those with a weight of their own; the matrix of a convolution is saved by the convolution."""
    for name, module in model.named_modules():
        own = isinstance(module, BlockSparseConv) or getattr(module, "stored", ELSEWHERE) != ELSEWHERE
        if own and isinstance(module, Layer):
            yield name, module


def _blocks(layer: Layer) -> tuple[MatrixLayout, BlockGrid]:
    kind: LayoutKind
    if isinstance(layer, BlockSparseConv):
        kind, shape = "conv", (layer.out_channels, layer.in_channels, *layer.kernel_size)
    else:
        kind, shape = "transposed" if layer.stored == TRANSPOSED else "linear", stored_shape(layer)
    return MatrixLayout(kind, shape), layer.grid


@contextmanager
def _as_blocks(layers: list[Layer]) -> Iterator[None]:
    """Within it state dicts hold the layers' blocks."""
    before = [layer.keeps_blocks for layer in layers]
    for layer in layers:
        layer.keeps_blocks = True
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer.keeps_blocks = kept


def _saved_name(model: Any, name: str, state: dict[str, Tensor]) -> str:
    """The weight's name in the file: `save_pretrained` gives weights the names back that they had before the library's.

    Raises NotImplementedError where it would not give the parts of a weight the same name as the weight.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return name
    (saved,) = revert_weight_conversion(model, {name: state[name]})
    for suffix in SUFFIXES:
        (part,) = revert_weight_conversion(model, {f"{name}{suffix}": state[f"{name}{suffix}"]})
        if part != f"{saved}{suffix}":
            raise NotImplementedError(
                f"'{name}': save_pretrained would call it '{saved}' and a part of it '{part}', expected '{saved}{suffix}'; "
                "copy the folder that was loaded, or write it anew: sapp export"
            )
    return str(saved)
