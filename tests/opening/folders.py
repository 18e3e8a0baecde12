"""Outputs of sapp for the tests: tiny models of transformers, pruned in blocks, each with its sparse folder."""

from __future__ import annotations

from pathlib import Path

import torch

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.exporting import export
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear

BLOCK = (8, 8)


def prune_blocks(model: torch.nn.Module, names: tuple[str, ...] = ("Linear", "Conv1D", "Conv2d")) -> None:
    """Zero three of four blocks of each layer of these classes, in place, the classifier's excepted."""
    for name, module in model.named_modules():
        if type(module).__name__ not in names or name.endswith(("classifier", "lm_head", "decoder")):
            continue
        weight = module.weight.data
        matrix = weight.movedim(1, -1).flatten(1) if weight.dim() > 2 else weight
        rows, columns = matrix.shape
        keep = torch.rand(-(-rows // 8), -(-columns // 8), generator=torch.Generator().manual_seed(len(name))) < 0.25
        keep[0, 0] = True
        mask = keep.repeat_interleave(8, 0)[:rows].repeat_interleave(8, 1)[:, :columns]
        masked = matrix * mask
        if weight.dim() > 2:
            masked = masked.unflatten(1, (*weight.shape[2:], weight.shape[1])).movedim(-1, 1)
        weight.copy_(masked)


def make_output(model: torch.nn.Module, source: Path, out: Path, max_shard_bytes: int | None = None) -> Path:
    """OUT of the model, pruned; what else is needed to use it lies in `source` already."""
    prune_blocks(model)
    model.save_pretrained(source)  # type: ignore[operator]
    export(source, out, "both", BLOCK, max_shard_bytes)
    assert open_checkpoint(out / "sparse").block_sparse
    return out


def sparse_layers(model: torch.nn.Module) -> dict[str, BlockSparseLinear | BlockSparseConv]:
    """By name; a convolution's matrix is a part of it."""
    found = {name: one for name, one in model.named_modules() if isinstance(one, BlockSparseLinear | BlockSparseConv)}
    return {name: layer for name, layer in found.items() if not name.endswith(".matrix")}
