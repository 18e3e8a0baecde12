"""What the pruned blocks of a layer hold, noted so that nothing an optimizer does to them lasts."""

from __future__ import annotations

from torch import Tensor

from sapp_cli.core.masks import from_matrix, spread
from sapp_cli.layers import AttachedLayer, held, rows_held


class HeldBlocks:
    """Weights and logits of one layer's pruned blocks, as they were when pruned; under FSDP of this process's rows."""

    def __init__(self, pruned: Tensor, weights: Tensor | None, entries: Tensor | None, logits: Tensor | None) -> None:
        self.pruned = pruned  # bool (R, C)
        self.entries = entries  # bool, the weight's shape: the entries of pruned blocks
        self.weights = weights  # their values, 1-d
        self.logits = logits  # logits of the pruned blocks, 1-d

    @classmethod
    def of(cls, layer: AttachedLayer, weights: bool) -> HeldBlocks:
        masked = layer.masked
        pruned = ~masked.keep
        entries = values = logits = None
        if not pruned.any():
            return cls(pruned, None, None, None)
        if weights:
            entries = rows_held(layer.theta, from_matrix(spread(pruned, masked.grid), masked.layout))
            values = held(layer.theta.detach())[entries]
        if masked.logits is not None:
            pruned = rows_held(masked.logits, pruned)
            logits = held(masked.logits.detach())[pruned]
        return cls(pruned, values, entries, logits)

    def restore(self, layer: AttachedLayer) -> None:
        # Where the kept blocks are trained by themselves, nobody moves the others. Not by indexing: that finds all the places
        # anew in every step, and takes five times as long.
        if self.entries is not None and self.weights is not None and layer.masked.kept is None:
            held(layer.theta).masked_scatter_(self.entries, self.weights)
        if self.logits is not None and layer.masked.logits is not None:
            held(layer.masked.logits).masked_scatter_(self.pruned, self.logits)
