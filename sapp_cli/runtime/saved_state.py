"""What a block-sparse layer saves and loads: the dense weight of the layer that it stands for, or its blocks.

Libraries save a model by its state dict, and load that into the model's own class, which knows no blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from sapp_cli.runtime.conv import BlockSparseConv
    from sapp_cli.runtime.linear import BlockSparseLinear

BLOCKS = ("values", "crow", "col")
LINEAR, TRANSPOSED, ELSEWHERE = "linear", "transposed", "elsewhere"
"""How a layer's dense weight is saved: (out, in); (in, out), as in GPT-2's `Conv1D`; by the convolution that holds it."""


def dense_state(layer: BlockSparseLinear, prefix: str) -> dict[str, Tensor]:
    """{weight, bias}: what the dense layer's `state_dict` would be, the weight in memory of its own."""
    if layer.stored == ELSEWHERE:
        return {}
    weight = layer.weight.t().contiguous() if layer.stored == TRANSPOSED else layer.weight
    return {f"{prefix}weight": weight, **({} if layer.bias is None else {f"{prefix}bias": layer.bias.detach()})}


def blocks_of_state(
    layer: BlockSparseLinear, state: Mapping[str, Any], prefix: str, missing: list[str], errors: list[str]
) -> dict[str, Any]:
    """The state with the layer's blocks in the place of a dense weight: those that have something nonzero in them.

    A state with neither gets the blocks that the layer has. What is wrong goes into `missing` and `errors`, in torch's words.
    """
    found = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if any(f"{prefix}{name}" in found for name in BLOCKS):
        return found
    weight, shape = found.pop(f"{prefix}weight", None), stored_shape(layer)
    if weight is None:
        missing.append(f"{prefix}weight")
    elif tuple(weight.shape) != shape:
        errors.append(_mismatch(f"{prefix}weight", tuple(weight.shape), shape))
    else:
        matrix = weight.t() if layer.stored == TRANSPOSED else weight
        layer = type(layer).from_weight(matrix, None, layer.block)
    return found | {f"{prefix}{name}": getattr(layer, name) for name in BLOCKS}


def stored_shape(layer: BlockSparseLinear) -> tuple[int, int]:
    """Of the dense weight in a state."""
    shape = layer.out_features, layer.in_features
    return shape[::-1] if layer.stored == TRANSPOSED else shape


def dense_conv_state(layer: BlockSparseConv, prefix: str) -> dict[str, Tensor]:
    """{weight, bias} of the dense convolution."""
    bias = {} if layer.bias is None else {f"{prefix}bias": layer.bias.detach()}
    return {f"{prefix}weight": layer.weight.contiguous(), **bias}


def rename_conv_state(
    layer: BlockSparseConv, state: dict[str, Any], prefix: str, missing: list[str], errors: list[str]
) -> None:
    """A dense convolution's weight and bias in the state become those of the matrix, in place."""
    inside = f"{prefix}matrix."
    if any(f"{inside}{name}" in state for name in BLOCKS):
        return
    weight, bias = state.pop(f"{prefix}weight", None), state.pop(f"{prefix}bias", None)
    shape = layer.out_channels, layer.in_channels, *layer.kernel_size
    if weight is None:
        missing.append(f"{prefix}weight")
    elif tuple(weight.shape) != shape:
        errors.append(_mismatch(f"{prefix}weight", tuple(weight.shape), shape))
    else:
        state[f"{inside}weight"] = weight.movedim(1, -1).flatten(1)
    if f"{inside}weight" not in state:
        state.update({f"{inside}{name}": getattr(layer.matrix, name) for name in BLOCKS})
    if layer.bias is not None and bias is None:
        missing.append(f"{prefix}bias")
        bias = layer.bias
    if bias is not None:
        state[f"{inside}bias"] = bias


def _mismatch(name: str, given: tuple[int, ...], own: tuple[int, ...]) -> str:
    return (
        f"size mismatch for {name}: copying a param with shape {given} from checkpoint, "
        f"the shape in current model is {own}."
    )
