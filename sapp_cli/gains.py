"""What a model would gain, block size by block size; of a bare file of weights from its headers alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import SettingError
from sapp_cli.grid import MatrixLayout
from sapp_cli.layers import Layer, decide_weights
from sapp_cli.recipe.prune_section import PruneSection, block_shape
from sapp_cli.report.sparsity import LayerFacts, SparsityReport, expected_counts, make_report
from sapp_cli.starter import BLOCKS, dense_in_any_case, looks_like_an_embedding

Decide = Callable[[PruneSection], list[Layer]]
Report = Callable[[list[Layer]], SparsityReport]


@dataclass(frozen=True)
class Gain:
    """What blocks of one size bring, at the target sparsity of the recipe."""

    block: tuple[int, int]
    layers: int  # that would be pruned
    bytes_dense: int  # of all tensors
    bytes_sparse: int

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "block": list(self.block)}


def gains_by_block(settings: PruneSection, decide: Decide, report: Report) -> list[Gain]:
    """The recipe's block size first, then others; a size that would prune no layer is left out.

    Raises SettingError if the recipe's own size would prune none.
    """
    own = block_shape(settings.block_size)
    found = [_gain(own, decide(settings), report)]
    for size in BLOCKS:
        if (size, size) != own:
            with suppress(SettingError):
                layers = decide(settings.model_copy(update={"block_size": size}))
                found.append(_gain((size, size), layers, report))
    return found


def _gain(block: tuple[int, int], layers: list[Layer], report: Report) -> Gain:
    model = report(layers).model
    return Gain(block, sum(layer.pruned for layer in layers), model.bytes_dense, model.bytes_sparse)


@dataclass(frozen=True)
class HeaderPlan:
    """What can be known of a checkpoint of which nothing says how to build its model."""

    report: SparsityReport  # with expected figures
    gains: list[Gain]

    def as_json(self) -> dict[str, Any]:
        return {**self.report.as_json(), "gains": [gain.as_json() for gain in self.gains]}


def plan_from_headers(checkpoint: Checkpoint, settings: PruneSection) -> HeaderPlan:
    """The layers as shapes and names tell them: matrices count as Linear, weights of more dimensions as convolutions.

    Raises SettingError if a rule matches no weight, or if no layer would be pruned.
    """
    weights = _weights(checkpoint)

    def decide(changed: PruneSection) -> list[Layer]:
        return decide_weights(weights, changed)

    def report(layers: list[Layer]) -> SparsityReport:
        return _report(checkpoint, layers)

    return HeaderPlan(report(decide(settings)), gains_by_block(settings, decide, report))


def _weights(checkpoint: Checkpoint) -> list[Layer]:
    """All floating weights of two or more dimensions, not yet decided about."""
    not_matrices = dense_in_any_case(checkpoint)
    found = []
    for name in checkpoint.dense_names():
        shape = checkpoint.shape(name)
        if len(shape) < 2 or 0 in shape or not DTYPES[checkpoint.dtype(name)].floating:
            continue
        layout = None if name in not_matrices else MatrixLayout("linear" if len(shape) == 2 else "conv", shape)
        found.append(
            Layer(
                name=name,
                aliases=(),
                stored=name,
                kind="LSTM, GRU and RNN",  # shown only where there is no layout
                shape=shape,
                parameters=math.prod(shape),
                prunable=layout is not None and not looks_like_an_embedding(name),
                pruned=False,
                reason="",
                layout=layout,
            )
        )
    return found


def _report(checkpoint: Checkpoint, layers: list[Layer]) -> SparsityReport:
    facts = [
        LayerFacts(
            name=layer.stored,
            shape=layer.shape,
            itemsize=DTYPES[checkpoint.dtype(layer.stored)].itemsize,
            prunable=layer.prunable,
            pruned=layer.pruned,
            reason=layer.reason,
            layout=layer.layout,
            grid=layer.grid,
            target=None if layer.sparsity is None else float(layer.sparsity),
        )
        for layer in layers
    ]
    names = {layer.stored for layer in layers}
    others = [
        (checkpoint.shape(name), DTYPES[checkpoint.dtype(name)])
        for name in checkpoint.dense_names()
        if name not in names
    ]
    parameters = sum(math.prod(shape) for shape, dtype in others if dtype.floating)
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in others)
    kept = {layer.stored: layer.kept_count for layer in layers if layer.pruned}
    return make_report(facts, expected_counts(kept), parameters, parameters, size)
