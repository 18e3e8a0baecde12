"""Blocks of a dense model left out at random: what a pruned model would compute with, before anybody trained one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.errors import SettingError, UsageError
from sapp_cli.layers import Layer, decide_layers
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.runtime.bench_results import RandomMask
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.load import CONVOLUTIONS, obstacle, too_little_to_gain


def mask_at_random(
    model: nn.Module, mask: RandomMask, section: PruneSection, stored_names: Mapping[str, str]
) -> dict[str, Layer]:
    """{name of the module: layer} of those that a run with these settings would prune; their blocks are zeroed here."""
    changes: dict[str, Any] = {} if mask.block is None else {"block_size": list(mask.block)}
    section = section.model_copy(update=changes | ({} if mask.sparsity is None else {"sparsity": mask.sparsity}))
    try:
        layers = decide_layers(model, section, stored_names)
    except SettingError as error:
        why, _, advice = error.problems[0][1].rpartition("; ")
        advice = "take a smaller --block-size" if "block_size" in advice else advice
        raise UsageError(f"--random-mask: {why}; {advice}") from error
    generator = torch.Generator().manual_seed(0)
    masked = {}
    for layer in layers:
        name, _, attribute = layer.name.rpartition(".")
        if not layer.pruned or layer.aliases or attribute != "weight":
            continue
        assert layer.grid is not None and layer.layout is not None, "a pruned layer has a grid"
        kept = torch.zeros(layer.grid.count, dtype=torch.bool)
        kept[torch.randperm(layer.grid.count, generator=generator)[: layer.kept_count]] = True
        (br, bc), (out, columns) = layer.grid.block, layer.grid.matrix
        spread = kept.view(layer.grid.size).repeat_interleave(br, 0).repeat_interleave(bc, 1)[:out, :columns]
        weight = _weight(model.get_submodule(name))
        mask_of_weight = spread.reshape(layer.layout.permuted_shape).permute(layer.layout.inverse_axes)
        weight.masked_fill_(~mask_of_weight.to(weight.device), 0.0)
        masked[name] = layer
    return masked


def replace_masked(model: nn.Module, masked: dict[str, Layer]) -> tuple[nn.Module, dict[str, str]]:
    """(The model with block-sparse layers, {name: why it stays dense})."""
    kept_dense = {}
    for name, layer in masked.items():
        assert layer.grid is not None and layer.layout is not None, "a pruned layer has a grid"
        module = model.get_submodule(name)
        why = obstacle(model, name) or too_little_to_gain(module, layer.kept_count, layer.grid)
        if why is not None:
            kept_dense[name] = why
            continue
        sparse: BlockSparseLinear | BlockSparseConv
        if isinstance(module, CONVOLUTIONS):
            sparse = BlockSparseConv.from_dense(module, layer.grid.block)
        else:
            bias = module.bias
            assert bias is None or isinstance(bias, Tensor), "a Linear or Conv1D"
            matrix = _weight(module).permute(layer.layout.axes)
            sparse = BlockSparseLinear.from_weight(matrix, bias, layer.grid.block)
            sparse.stored = layer.layout.kind
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, sparse.eval())
    return model, kept_dense


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor), "a Linear or a convolution"
    return weight
