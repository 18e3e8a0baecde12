"""Two checkpoints side by side, layer by layer: which blocks both keep, and how far the weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sapp_cli.checkpoint.block_sums import to_float64
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.grid import MatrixLayout
from sapp_cli.report.bands import MatrixRows, bands
from sapp_cli.report.sparsity import LayerFacts
from sapp_cli.report.wording import by


@dataclass(frozen=True)
class LayerComparison:
    """A layer that both checkpoints have, in the blocks that the first one is seen in."""

    name: str
    block: tuple[int, int] | None
    kept_in_both: int | None
    only_here: int | None
    only_there: int | None
    change: (
        float | None
    )  # ‖here − there‖ / ‖there‖; None where there is nothing but zeros, or values that are not finite
    problem: str | None  # why the layer cannot be compared


@dataclass(frozen=True)
class Comparison:
    """All layers of both."""

    path: str  # of the other checkpoint
    layers: tuple[LayerComparison, ...]
    only_here: tuple[str, ...]  # names of layers
    only_there: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The value of `against` in the document of `report --json`."""
        return asdict(self)


def compare(
    here: Checkpoint, layers: Sequence[LayerFacts], there: Checkpoint, other_layers: Sequence[LayerFacts]
) -> Comparison:
    """The comparison over the layers of either checkpoint, read in bands. Raises CheckpointError for damaged files."""
    present = {*there.dense_names(), *there.tied}
    known = {*here.dense_names(), *here.tied}
    return Comparison(
        str(there.path),
        tuple(_compare_layer(here, layer, there) for layer in layers if layer.name in present),
        tuple(layer.name for layer in layers if layer.name not in present),
        tuple(layer.name for layer in other_layers if layer.name not in known),
    )


def _compare_layer(here: Checkpoint, layer: LayerFacts, there: Checkpoint) -> LayerComparison:
    shape = there.shape(layer.name)
    if shape != layer.shape:
        return _problem(layer, f"{by(layer.shape)} here, {by(shape)} there")
    if layer.layout is None or layer.grid is None:
        return _problem(layer, layer.reason or "not seen as a matrix")
    entry = there.block_sparse.get(there.tied.get(layer.name, layer.name))
    if entry is not None and entry.layout != layer.layout:
        return _problem(layer, f"layout {layer.layout.kind} here, {entry.layout.kind} there")
    mine = block_statistics(here, layer.name, layer.layout, layer.grid).kept
    theirs = block_statistics(there, layer.name, layer.layout, layer.grid).kept
    return LayerComparison(
        name=layer.name,
        block=layer.grid.block,
        kept_in_both=int((mine & theirs).sum()),
        only_here=int((mine & ~theirs).sum()),
        only_there=int((theirs & ~mine).sum()),
        change=relative_change(here, there, layer.name, layer.layout),
        problem=None,
    )


def relative_change(here: Checkpoint, there: Checkpoint, name: str, layout: MatrixLayout) -> float | None:
    """‖here − there‖ / ‖there‖ of a weight, in float64; 0 for two of zeros, None where no finite number says it."""
    mine, theirs = MatrixRows(here, name, layout), MatrixRows(there, name, layout)
    kinds = DTYPES[here.dtype(name)], DTYPES[there.dtype(name)]
    difference = norm = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start, stop in bands(layout, 8):
            a, b = to_float64(mine.read(start, stop), kinds[0]), to_float64(theirs.read(start, stop), kinds[1])
            difference += float(np.square(a - b).sum())
            norm += float(np.square(b).sum())
    if difference == 0:
        return 0.0
    change = math.sqrt(difference / norm) if norm else math.inf
    return change if math.isfinite(change) else None


def _problem(layer: LayerFacts, text: str) -> LayerComparison:
    return LayerComparison(layer.name, None, None, None, None, None, text)
