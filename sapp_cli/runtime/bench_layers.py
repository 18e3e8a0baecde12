"""Every kind of layer of a model, dense against block-sparse, with the very inputs that it gets in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from sapp_cli.runtime.bench_forms import Form, Forms, check_outputs, time_pair
from sapp_cli.runtime.bench_results import LayerResult, Settings
from sapp_cli.runtime.choice import Choice, bucket_of
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.conv_choice import ConvChoice, conv_bucket_of
from sapp_cli.runtime.conv_products import is_channels_last
from sapp_cli.runtime.example_inputs import Given
from sapp_cli.runtime.linear import BlockSparseLinear

BlockSparse: TypeAlias = BlockSparseLinear | BlockSparseConv


def block_sparse_layers(model: nn.Module) -> dict[str, BlockSparse]:
    """{name: layer}; a convolution counts as itself, not as the matrix inside it."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, BlockSparse)}
    return {name: layer for name, layer in found.items() if name.rpartition(".")[0] not in found}


def bench_layers(forms: Forms, given: Given, settings: Settings) -> list[LayerResult]:
    """One result for each kind of layer, in the model's order."""
    replaced = block_sparse_layers(forms["block_sparse"].model)
    shapes = _inputs_of_layers(forms["dense"], list(replaced), keep=False)
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, layer in replaced.items():
        if name in shapes:  # a layer may not be used at all
            kept = round(_kept(layer) / layer.grid.count, 2)
            geometry = layer.geometry if isinstance(layer, BlockSparseConv) else None
            groups.setdefault((layer.grid, geometry, kept, layer.bias is None, shapes[name].shape), []).append(name)
    firsts = [names[0] for names in groups.values()]
    seen = {form: _inputs_of_layers(forms[form], firsts, keep=True) for form in forms}
    results = []
    for names in groups.values():
        name, layer = names[0], replaced[names[0]]
        # Each with the very input that it gets in its form of the model: convolutions mind how it lies in memory.
        of_dense, of_sparse = seen["dense"].pop(name), seen["block_sparse"].pop(name)
        linear = forms["dense"].model.get_submodule(name)
        check_outputs(linear(of_dense), layer(of_dense), name)
        y = layer(of_sparse)
        runs = {"dense": lambda: linear(of_dense), "block_sparse": lambda: layer(of_sparse)}  # noqa: B023
        times = time_pair(runs, settings.seconds / 10, given)
        choice = _choice(layer, of_sparse, y)
        results.append(
            LayerResult(
                names=tuple(names),
                kind="conv" if isinstance(layer, BlockSparseConv) else "linear",
                matrix=layer.grid.matrix,
                block=layer.grid.block,
                blocks=layer.grid.count,
                kept_blocks=_kept(layer),
                batch_size=given.batch_size,
                sequence_length=given.sequence_length,
                rows=_rows(layer, y),
                way=choice.way,
                reason=choice.reason,
                times=times,
            )
        )
    return results


def _inputs_of_layers(form: Form, names: Sequence[str], keep: bool) -> dict[str, Tensor]:
    """What each of these layers is given in this form of the model; without `keep` only shapes count."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].clone() if keep else given[0].to("meta")

        return note

    handles = [form.model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        form.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _kept(layer: BlockSparse) -> int:
    return len(layer.matrix.col if isinstance(layer, BlockSparseConv) else layer.col)


def _rows(layer: BlockSparse, y: Tensor) -> int:
    return y.numel() // layer.grid.matrix[0]


def _choice(layer: BlockSparse, x: Tensor, y: Tensor) -> Choice | ConvChoice:
    """What the layer took for x."""
    rows = _rows(layer, y)
    if isinstance(layer, BlockSparseLinear):
        return next(choice for choice in reversed(layer.choices) if choice.bucket == bucket_of(rows))
    key = conv_bucket_of(rows), is_channels_last(x)
    return next(choice for choice in reversed(layer.choices) if (choice.bucket, choice.channels_last) == key)
