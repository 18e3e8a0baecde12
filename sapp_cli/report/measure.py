"""Counting what is left in a checkpoint's files: the measured counterpart of a plan's expected figures.

Everything is read in slabs: memory for a few MiB and for one layer's block norms, whatever the checkpoint's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from sapp_cli.checkpoint.block_sums import count_nonzero
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.statistics import BlockStatistics, block_statistics
from sapp_cli.report.sparsity import Counts, LayerFacts, SparsityReport, make_report

PIECE_BYTES = 1 << 20
Look: TypeAlias = Callable[[LayerFacts, BlockStatistics], None]


def measure(checkpoint: Checkpoint, layers: Sequence[LayerFacts], look: Look | None = None) -> SparsityReport:
    """The report of a checkpoint over these layers, every figure counted in its files.

    Layers that the checkpoint does not store are left out; all its other tensors count towards the model's totals.
    `look` is shown the block statistics of each layer on the way, so that a report with pictures reads the files once.
    Raises CheckpointError for damaged files.
    """
    stored = set(checkpoint.dense_names()) | set(checkpoint.tied)
    present = [layer for layer in layers if layer.name in stored]
    names = {checkpoint.tied.get(layer.name, layer.name) for layer in present}
    parameters = nonzero = size = 0
    for name in stored - set(checkpoint.tied) - names:
        dtype = DTYPES[checkpoint.dtype(name)]
        entries = math.prod(checkpoint.shape(name))
        size += entries * dtype.itemsize
        if dtype.floating:
            parameters += entries
            nonzero += count_entries(checkpoint, name)
    return make_report(present, lambda layer: _count(checkpoint, layer, look), parameters, nonzero, size)


def count_entries(checkpoint: Checkpoint, name: str) -> int:
    """The nonzero entries of a weight or tensor, by its logical name."""
    name = checkpoint.tied.get(name, name)
    entry = checkpoint.block_sparse.get(name)
    if entry is not None:
        return block_statistics(checkpoint, name, entry.layout, entry.grid).nonzero
    file, kind = checkpoint.file(name), DTYPES[checkpoint.dtype(name)]
    length, nonzero = checkpoint.tensors[name].nbytes, 0
    buffer = np.empty(min(length, PIECE_BYTES), np.uint8)
    with file.reading(name) as read:
        for start in range(0, length, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, length - start)]
            read(start, piece)
            nonzero += count_nonzero(piece.view(kind.storage), kind)
    return nonzero


def _count(checkpoint: Checkpoint, layer: LayerFacts, look: Look | None) -> Counts:
    if layer.layout is None or layer.grid is None:
        return Counts(0, count_entries(checkpoint, layer.name))
    found = block_statistics(checkpoint, layer.name, layer.layout, layer.grid)
    if look is not None:
        look(layer, found)
    return Counts(int(np.count_nonzero(found.kept)), found.nonzero)
