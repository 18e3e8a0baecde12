"""What the pictures of a report need of each layer, collected while its files are read: never a whole weight.

R, C: block rows and columns.  r, c: rows and columns of a picture's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.block_sparse import Mask
from sapp_cli.checkpoint.statistics import BlockStatistics
from sapp_cli.report.sparsity import LayerFacts

LONGEST_SIDE = 96  # cells of a picture
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DECADES = (-12, 12)
BINS_A_DECADE = 100
Float64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer as its pictures show it."""

    name: str
    grid: tuple[int, int]  # (R, C)
    shares: Float64  # (r, c): share of a cell's blocks that are kept
    blocks_a_cell: tuple[int, int]  # (1, 1) unless the grid was scaled down
    norms: tuple[float, ...]  # QUANTILES of the norms of the kept blocks; empty where none is kept
    histogram: Counts  # of the same norms, over EDGES
    finite: bool


EDGES: Float64 = np.logspace(*DECADES, (DECADES[1] - DECADES[0]) * BINS_A_DECADE + 1)
"""Edges of the histograms' bins: norms from 10⁻¹² to 10¹², a hundred bins a decade; what is beyond falls into the last bins."""


@dataclass
class Gallery:
    """The views of a checkpoint's layers; `add` is what `measure` calls for each."""

    views: dict[str, LayerView] = field(default_factory=dict)

    def add(self, layer: LayerFacts, found: BlockStatistics) -> None:
        """Keep what the pictures of this layer need."""
        shares, factors = scaled_down(found.kept)
        norms = found.norms[found.kept]
        norms = norms[np.isfinite(norms) & (norms > 0)].astype(np.float64)
        quantiles = tuple(float(value) for value in np.quantile(norms, QUANTILES)) if norms.size else ()
        histogram, _ = np.histogram(np.clip(norms, EDGES[0], EDGES[-1]), EDGES)
        self.views[layer.name] = LayerView(
            layer.name, found.kept.shape, shares, factors, quantiles, histogram.astype(np.int64), found.finite
        )


def scaled_down(kept: Mask) -> tuple[Float64, tuple[int, int]]:
    """Kept blocks (R, C) as a picture of at most 96 × 96 cells: (share of kept blocks in each (r, c), blocks a cell).

    A cell at the right or bottom edge may cover fewer blocks; its share is of those it covers.
    """
    rows, columns = kept.shape
    down, across = -(-rows // LONGEST_SIDE), -(-columns // LONGEST_SIDE)
    starts = np.arange(0, rows, down), np.arange(0, columns, across)
    sums = np.add.reduceat(np.add.reduceat(kept.astype(np.float64), starts[0], axis=0), starts[1], axis=1)
    heights, widths = np.diff([*starts[0], rows]), np.diff([*starts[1], columns])
    return sums / np.outer(heights, widths), (down, across)
