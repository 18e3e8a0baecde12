"""Which form a layer gets: dense, or blocks in groups of rows; measured in a runtime, or by a rule without one.

Layers that are alike are decided once, and the graphs to measure are made together: the exporter takes its time for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from sapp_cli.portable.graph import make_graph, parts_of_graph
from sapp_cli.portable.layers import PortableConv, PortableLinear, portable
from sapp_cli.portable.place import OLDEST_OPSET
from sapp_cli.portable.runtimes import Array, Runtime, Session
from sapp_cli.portable.signature import Input, Signature
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.timing import time_in_turns

BlockSparse: TypeAlias = BlockSparseLinear | BlockSparseConv
Portable: TypeAlias = PortableLinear | PortableConv
DENSE, BLOCKS = "dense", "blocks"
MOST_GROUPS = 4
"""Of block rows: each costs a few calls, and saves blocks of zeros."""
FEWER_GROUPS = 1.05
"""A group less, if it costs no more than this many times the blocks."""
COST = ((64, 1.9), (32, 2.6), (16, 4.5))
"""(smaller side of a block, what a multiplication in such blocks costs when one of a dense product costs 1), at most: the
rule where nothing can be measured. Smaller blocks have no gain to expect. Of a trial: docs/onnx.md.
"""
SECONDS = 0.1
"""To measure both forms of a layer."""
TOGETHER = 12
"""Kinds of layers in one graph, both forms of each."""
WORTHWHILE = 0.95
"""Blocks have to take at most this share of the dense time: times are noisy, and runtimes know dense layers best."""


@dataclass(frozen=True)
class Candidate:
    """A pruned layer, before it has its form."""

    name: str
    dense: nn.Module
    blocks: Portable
    kept: int
    x: Tensor | None
    """What the model gives it; None for a layer that was not called."""

    @classmethod
    def of(cls, name: str, dense: nn.Module, layer: BlockSparse, x: Tensor | None) -> Candidate:
        """`dense`: the module in whose place the layer stands."""
        matrix = layer.matrix if isinstance(layer, BlockSparseConv) else layer
        return cls(name, dense, _grouped(layer), len(matrix.col), x)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for layers that take the same time, but for a few percent of their blocks."""
        product, geometry = _product(self.blocks), getattr(self.blocks, "geometry", None)
        shares = (round(50 * len(part.weight) * part.width / product.grid.count) for part in product.parts)
        shape = None if self.x is None else tuple(self.x.shape)
        return product.grid, geometry, product.bias is None, shape, *shares


@dataclass(frozen=True)
class Form:
    """What became of one pruned layer."""

    name: str
    module: nn.Module
    blocks: int
    """Of the grid."""
    kept: int
    groups: int
    """Of block rows; 0 for a dense layer."""
    multiplied: int
    """Blocks, those of zeros among them that fill rows up; of a dense layer all."""
    seconds: Mapping[str, float] | None
    """Of both forms of a layer of this kind; None where the rule decided."""

    @property
    def is_dense(self) -> bool:
        return self.groups == 0

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "form": DENSE if self.is_dense else BLOCKS,
            "blocks": self.blocks,
            "kept_blocks": self.kept,
            "groups": self.groups,
            "multiplied_blocks": self.multiplied,
            "seconds": None
            if self.seconds is None
            else {form: round(value, 9) for form, value in self.seconds.items()},
        }


def choose_forms(candidates: Sequence[Candidate], runtime: Runtime | None) -> list[Form]:
    """The faster form of each: measured in the runtime with one thread and the layer's own input; by the rule without."""
    if runtime is None:
        return [_form(candidate, _pays(candidate), None) for candidate in candidates]
    firsts = {candidate.kind: candidate for candidate in reversed(candidates) if candidate.x is not None}
    seconds: dict[tuple[object, ...], dict[str, float]] = {}
    for start in range(0, len(firsts), TOGETHER):
        some = dict(list(firsts.items())[start : start + TOGETHER])
        seconds.update(zip(some, measure(list(some.values()), runtime), strict=True))
    forms = []
    for candidate in candidates:
        times = seconds.get(candidate.kind)
        blocks = _pays(candidate) if times is None else times[BLOCKS] < WORTHWHILE * times[DENSE]
        forms.append(_form(candidate, blocks, times))
    return forms


def measure(layers: Sequence[Candidate], runtime: Runtime) -> list[dict[str, float]]:
    """{dense, blocks}: processor seconds of one call with one thread, the least of many in turns, for each layer."""
    inputs = tuple(Input(f"x{number}", {}, (layer.x,)) for number, layer in enumerate(layers) if layer.x is not None)
    names = tuple(f"{form}{number}" for number in range(len(layers)) for form in (DENSE, BLOCKS))
    signature = Signature(_SideBySide([(layer.dense, layer.blocks) for layer in layers]), inputs, names)
    parts = parts_of_graph(make_graph(signature, OLDEST_OPSET))
    found = []
    for given, dense, blocks in zip(inputs, parts[::2], parts[1::2], strict=True):
        x = given.examples[0].numpy()
        runs = {form: _call(runtime.open(part, [given.name]), x) for form, part in ((DENSE, dense), (BLOCKS, blocks))}
        times = time_in_turns(runs, budget=SECONDS, drop_hopeless=True, clock=time.process_time)
        found.append({form: timing.least for form, timing in times.items()})
    return found


def _call(run: Session, x: Array) -> Callable[[], list[Array]]:
    return lambda: run([x])


class _SideBySide(nn.Module):
    """Layers that have nothing to do with each other: each has an input of its own, and an output in both forms."""

    def __init__(self, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.dense, self.blocks = (nn.ModuleList(forms) for forms in zip(*pairs, strict=True))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.dense, self.blocks, tensors, strict=True)
        return tuple(form(x) for dense, blocks, x in pairs for form in (dense, blocks))


def _grouped(layer: BlockSparse) -> Portable:
    """With the fewest groups of block rows that come near the fewest blocks."""
    forms = [portable(layer, groups) for groups in range(1, MOST_GROUPS + 1)]
    return next(form for form in forms if form.blocks <= FEWER_GROUPS * forms[-1].blocks)


def _form(candidate: Candidate, blocks: bool, seconds: Mapping[str, float] | None) -> Form:
    product = _product(candidate.blocks)
    count = product.grid.count
    if not blocks:
        return Form(candidate.name, candidate.dense, count, candidate.kept, 0, count, seconds)
    groups = len(product.parts)
    return Form(candidate.name, candidate.blocks, count, candidate.kept, groups, candidate.blocks.blocks, seconds)


def _pays(candidate: Candidate) -> bool:
    """The rule: blocks, if there are so few that they cost less than the dense product; never for a convolution."""
    if isinstance(candidate.blocks, PortableConv):
        return False
    grid = candidate.blocks.grid
    cost = next((cost for side, cost in COST if min(grid.block) >= side), None)
    return cost is not None and candidate.blocks.blocks * cost < grid.count


def _product(form: Portable) -> PortableLinear:
    return form.product if isinstance(form, PortableConv) else form
