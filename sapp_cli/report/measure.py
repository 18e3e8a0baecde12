"""Counting what is left in a checkpoint's files: the measured counterpart of a plan's expected figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapp_cli.checkpoint.block_sparse import kept_blocks, to_matrix
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.report.sparsity import Counts, LayerFacts, SparsityReport, make_report


def measure(checkpoint: Checkpoint, layers: Sequence[LayerFacts]) -> SparsityReport:
    """The report of a checkpoint over these layers, every figure counted in its files.

    Layers that the checkpoint does not store are left out; all its other tensors count towards the model's totals.
    """
    stored = set(checkpoint.dense_names()) | set(checkpoint.tied)
    present = [layer for layer in layers if layer.name in stored]
    names = {checkpoint.tied.get(layer.name, layer.name) for layer in present}
    parameters = nonzero = size = 0
    for name in checkpoint.dense_names():
        if name in names:
            continue
        dtype = DTYPES[checkpoint.dtype(name)]
        bits = checkpoint.dense_array(name)
        size += bits.size * dtype.itemsize
        if dtype.floating:
            parameters += bits.size
            nonzero += int(np.count_nonzero(dtype.nonzero(bits)))
    return make_report(present, lambda layer: _count(checkpoint, layer), parameters, nonzero, size)


def _count(checkpoint: Checkpoint, layer: LayerFacts) -> Counts:
    dtype = DTYPES[checkpoint.dtype(layer.name)]
    bits = checkpoint.dense_array(layer.name)
    kept = 0
    if layer.layout is not None and layer.grid is not None:
        kept = int(kept_blocks(to_matrix(bits, layer.layout), layer.grid, dtype).sum())
    return Counts(kept, int(np.count_nonzero(dtype.nonzero(bits))))
