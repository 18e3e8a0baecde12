"""The sparsity of a checkpoint, layer by layer: what sparsity.json, `report`, `plan` and the model card all show.

R, C: block rows and columns.  n = R·C blocks, K of them kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from sapp_cli.grid import BlockGrid, MatrixLayout, final_count

VERSION = 1
WORK_KEYS = ("multiply_adds", "kept_multiply_adds", "multiply_adds_share")
"""Of sparsity.json, only where the model was seen at work; the last of layers only."""
OPTIONAL_KEYS = (*WORK_KEYS, "no_gain")
"""Of sparsity.json, left out where there is no value."""
LOST_NOTHING = "lost no block"
"""The reason of a layer that was given a target and kept all of its blocks."""
Order = Literal["name", "sparsity", "size", "blocks"]


@dataclass(frozen=True)
class LayerFacts:
    """A weight and what was decided about it, before anything is counted."""

    name: str
    shape: tuple[int, ...]
    itemsize: int  # bytes of an entry
    prunable: bool
    pruned: bool | None  # None: nobody said so; a layer with a removed block is one
    reason: str
    layout: MatrixLayout | None = None
    grid: BlockGrid | None = None
    target: float | None = None  # requested share of blocks
    multiply_adds: int | None = None  # of the dense weight, for one example; None: not known
    no_gain: str | None = None  # why the layer is not faster block-sparse; None: it is, or nobody said so

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Counts:
    """What is left of a weight."""

    kept_blocks: int
    nonzero: int


@dataclass(frozen=True)
class LayerSparsity:
    """A layer of the report; the keys of sparsity.json."""

    name: str
    shape: tuple[int, ...]
    layout: str | None  # linear, conv or transposed; null for a weight that is not seen as a matrix
    block: tuple[int, int] | None
    blocks: int | None
    kept_blocks: int | None
    block_sparsity: float | None  # share of blocks removed
    sparsity: float  # share of entries that are zero
    target: float | None  # requested block_sparsity; None for a layer that was not to be pruned
    bytes_dense: int
    bytes_sparse: int  # in the smaller of its two forms, if pruned
    prunable: bool
    pruned: bool
    reason: str
    multiply_adds: int | None = None  # of the dense weight, for one example; None: not known
    kept_multiply_adds: int | None = None  # of the kept blocks; all of them where block-sparse is not faster
    no_gain: str | None = None  # why it is not

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def multiply_adds_of_a_block(self) -> int:
        """For one example; 0 if that is not known, or pruning saves none because the layer computes as a dense one."""
        if self.no_gain:
            return 0
        return -(-(self.multiply_adds or 0) * self.block_size // max(1, self.parameters))

    @property
    def nonzero(self) -> int:
        return round((1 - self.sparsity) * self.parameters)

    @property
    def block_size(self) -> int:
        """Entries of one block, edge blocks as whole ones."""
        return math.prod(self.block or ())

    @property
    def target_blocks(self) -> int | None:
        """Blocks that the layer keeps if it meets its own target; None without a target."""
        if self.target is None or self.blocks is None:
            return None
        return final_count(Fraction(repr(self.target)), self.blocks)

    @property
    def shown_sparsity(self) -> float:
        """Of the blocks where pruned, which is what a target counts; of the entries otherwise."""
        return self.block_sparsity if self.pruned and self.block_sparsity is not None else self.sparsity


@dataclass(frozen=True)
class ModelSparsity:
    """The totals; the keys of sparsity.json."""

    parameters: int  # entries of all floating tensors, ties once
    nonzero: int
    sparsity: float
    prunable_parameters: int  # of all Linear and convolution weights, those left dense included
    prunable_sparsity: float
    bytes_dense: int  # of all tensors
    bytes_sparse: int
    multiply_adds: int | None = None  # of all layers, for one example; None: that of a layer is not known
    kept_multiply_adds: int | None = None


@dataclass(frozen=True)
class Budget:
    """What the kept blocks of all layers with a target take of one resource; edge blocks count as whole ones."""

    limit: int  # what they take if each layer meets its own target
    used: int

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """A whole checkpoint."""

    model: ModelSparsity
    layers: tuple[LayerSparsity, ...]

    @property
    def pruned(self) -> tuple[LayerSparsity, ...]:
        return tuple(layer for layer in self.layers if layer.pruned)

    @property
    def targeted(self) -> tuple[LayerSparsity, ...]:
        """The layers that were given a target, those that lost nothing included; without a record the pruned ones."""
        return tuple(layer for layer in self.layers if layer.target_blocks is not None) or self.pruned

    @property
    def pruned_block_sparsity(self) -> float:
        """The sparsity reached: the share of removed blocks in all layers that were given a target, weighted by block size.

        0 if there is no such layer.
        """
        entries = sum(layer.block_size * (layer.blocks or 0) for layer in self.targeted)
        return _removed(sum(layer.block_size * (layer.kept_blocks or 0) for layer in self.targeted), entries)

    @property
    def requested_sparsity(self) -> float | None:
        """The same share if every layer met its own target before blocks are counted in whole numbers; None: no record."""
        targets = [(layer.target, layer.block_size * (layer.blocks or 0)) for layer in self.targeted]
        if not targets or any(target is None for target, _ in targets):
            return None
        if len({target for target, _ in targets}) == 1:
            return targets[0][0]
        return sum((target or 0) * entries for target, entries in targets) / sum(entries for _, entries in targets)

    @property
    def budgets(self) -> dict[str, Budget]:
        """{"parameters": …, "multiply_adds": …}: how much of uniform targets' cost the kept blocks take.

        Empty if no layer has a target. Multiply-adds are missing if those of one of the layers are not known, and if no layer
        is faster block-sparse; a layer that is not counts in parameters alone.
        """
        rows = [layer for layer in self.targeted if layer.target_blocks is not None]
        if not rows:
            return {}
        found = {"parameters": _budget(rows, [layer.block_size for layer in rows])}
        if all(layer.multiply_adds is not None for layer in rows) and not all(layer.no_gain for layer in rows):
            found["multiply_adds"] = _budget(rows, [layer.multiply_adds_of_a_block for layer in rows])
        return found

    def ordered(self, order: Order | None) -> SparsityReport:
        """The same report, its layers by name, or the sparsest, largest or most finely divided first; None as they are."""
        keys: dict[Order, Callable[[LayerSparsity], Any]] = {
            "name": lambda layer: layer.name,
            "sparsity": lambda layer: -layer.shown_sparsity,
            "size": lambda layer: -layer.bytes_dense,
            "blocks": lambda layer: -(layer.blocks or 0),
        }
        return self if order is None else replace(self, layers=tuple(sorted(self.layers, key=keys[order])))

    def as_json(self) -> dict[str, Any]:
        """The document of sparsity.json."""
        layers = [_known({**asdict(layer), "multiply_adds_share": self.share(layer)}) for layer in self.layers]
        document: dict[str, Any] = {"version": VERSION, "model": _known(asdict(self.model)), "layers": layers}
        if self.requested_sparsity is not None:
            document["requested"] = {
                "sparsity": self.requested_sparsity,
                "reached": self.pruned_block_sparsity,
                "layers": len(self.targeted),
                "budgets": {name: asdict(budget) for name, budget in self.budgets.items()},
            }
        return document

    @property
    def has_work(self) -> bool:
        """True if the multiply-adds of a layer are known."""
        return any(layer.multiply_adds is not None for layer in self.layers)

    @property
    def not_counted(self) -> tuple[str, ...]:
        """The layers whose multiply-adds are not known although those of others are; the reason why there is no total."""
        return tuple(layer.name for layer in self.layers if layer.multiply_adds is None) if self.has_work else ()

    def share(self, layer: LayerSparsity) -> float | None:
        """Of all multiply-adds that are left, this layer's share."""
        if layer.kept_multiply_adds is None or not self.model.kept_multiply_adds:
            return None
        return layer.kept_multiply_adds / self.model.kept_multiply_adds


def make_report(
    layers: Iterable[LayerFacts],
    count: Callable[[LayerFacts], Counts],
    other_parameters: int,
    other_nonzero: int,
    other_bytes: int,
) -> SparsityReport:
    """The report over the layers, each counted by `count`, and the checkpoint's other tensors."""
    rows = tuple(_layer(facts, count(facts)) for facts in layers)
    prunable = [row for row in rows if row.prunable]
    parameters = other_parameters + sum(row.parameters for row in rows)
    nonzero = other_nonzero + sum(row.nonzero for row in rows)
    prunable_parameters = sum(row.parameters for row in prunable)
    prunable_nonzero = sum(row.nonzero for row in prunable)
    counted = bool(rows) and all(row.multiply_adds is not None for row in rows)
    return SparsityReport(
        ModelSparsity(
            parameters=parameters,
            nonzero=nonzero,
            sparsity=_removed(nonzero, parameters),
            prunable_parameters=prunable_parameters,
            prunable_sparsity=_removed(prunable_nonzero, prunable_parameters),
            bytes_dense=other_bytes + sum(row.bytes_dense for row in rows),
            bytes_sparse=other_bytes + sum(row.bytes_sparse for row in rows),
            multiply_adds=sum(row.multiply_adds or 0 for row in rows) if counted else None,
            kept_multiply_adds=sum(row.kept_multiply_adds or 0 for row in rows) if counted else None,
        ),
        rows,
    )


def expected_counts(kept: Mapping[str, int]) -> Callable[[LayerFacts], Counts]:
    """Counts before training: K as planned, entries in proportion (in a ragged grid nobody knows which blocks stay)."""

    def count(facts: LayerFacts) -> Counts:
        if not facts.pruned or facts.grid is None:
            return Counts(facts.grid.count if facts.grid else 0, facts.parameters)
        share = kept[facts.name] / facts.grid.count
        return Counts(kept[facts.name], round(share * facts.parameters))

    return count


def _layer(facts: LayerFacts, counts: Counts) -> LayerSparsity:
    grid, dense = facts.grid, facts.parameters * facts.itemsize
    lost = grid is not None and counts.kept_blocks < grid.count
    pruned = lost if facts.pruned is None else facts.pruned and (lost or grid is None)
    entries = min(facts.parameters, counts.kept_blocks * math.prod(grid.block)) if pruned and grid else facts.parameters
    multiplied = facts.parameters if facts.no_gain else entries
    return LayerSparsity(
        name=facts.name,
        shape=facts.shape,
        layout=facts.layout.kind if facts.layout else None,
        block=grid.block if grid else None,
        blocks=grid.count if grid else None,
        kept_blocks=counts.kept_blocks if grid else None,
        block_sparsity=_removed(counts.kept_blocks, grid.count) if grid else None,
        sparsity=_removed(counts.nonzero, facts.parameters),
        target=facts.target,
        bytes_dense=dense,
        bytes_sparse=min(dense, grid.stored_bytes(counts.kept_blocks, facts.itemsize)) if pruned and grid else dense,
        prunable=facts.prunable,
        pruned=pruned,
        reason=facts.reason if pruned or not facts.pruned else LOST_NOTHING,
        multiply_adds=facts.multiply_adds,
        kept_multiply_adds=None
        if facts.multiply_adds is None
        else -(-facts.multiply_adds * multiplied // facts.parameters),
        no_gain=facts.no_gain,
    )


def _budget(layers: Sequence[LayerSparsity], costs: Sequence[int]) -> Budget:
    pairs = list(zip(layers, costs, strict=True))
    return Budget(
        limit=sum((layer.target_blocks or 0) * cost for layer, cost in pairs),
        used=sum((layer.kept_blocks or 0) * cost for layer, cost in pairs),
    )


def _known(part: dict[str, Any]) -> dict[str, Any]:
    """The part without the figures on multiply-adds that nobody counted, and other keys that may be missing."""
    return {key: value for key, value in part.items() if value is not None or key not in OPTIONAL_KEYS}


def _removed(kept: int, total: int) -> float:
    """One division, so that 2 of 10 are 0.2 and not a hair less: `check` compares these figures with what was asked."""
    return (total - kept) / total if total else 0.0
