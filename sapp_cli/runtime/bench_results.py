"""What `sapp bench` is asked and what it answers, as the table and `--json` show it. Times are seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sapp_cli.runtime.machine import Machine
from sapp_cli.runtime.timing import Timing


@dataclass(frozen=True)
class RandomMask:
    """Blocks left out at random, to estimate before any training."""

    block: tuple[int, int]
    sparsity: float


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    batch_sizes: tuple[int, ...] = (1, 8)
    sequence_length: int = 128
    random_mask: RandomMask | None = None
    bf16: bool = False
    threads: int | None = None
    """None: as many as torch takes."""
    seconds: float = 3.0
    """For the model at one batch size; layers get a tenth of it each."""


@dataclass(frozen=True)
class Pair:
    """Times of one call, dense and block-sparse."""

    dense: Timing
    sparse: Timing

    @property
    def speedup(self) -> float:
        return self.dense.median / self.sparse.median

    def as_json(self) -> dict[str, Any]:
        times = {"dense": self.dense, "block_sparse": self.sparse}
        return {
            **{name: {"median": timing.median, "spread": timing.spread} for name, timing in times.items()},
            "speedup": self.speedup,
        }


@dataclass(frozen=True)
class LayerResult:
    """A layer at one batch size; it stands for all layers that are alike in shape, blocks, share kept and input."""

    names: tuple[str, ...]
    matrix: tuple[int, int]
    block: tuple[int, int]
    blocks: int
    kept_blocks: int
    batch_size: int
    rows: int
    """Rows of x that the layer sees."""
    way: str
    reason: str
    times: Pair

    def as_json(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name != "times"}
        return {**facts, **self.times.as_json()}


@dataclass(frozen=True)
class ModelResult:
    """The whole model at one batch size."""

    batch_size: int
    inputs: dict[str, list[int]]
    """Shapes."""
    difference: float
    """Largest difference between the two outputs, as a share of the largest output."""
    tolerance: float
    times: Pair

    def as_json(self) -> dict[str, Any]:
        document = {**{name: value for name, value in vars(self).items() if name != "times"}, **self.times.as_json()}
        for form in ("dense", "block_sparse"):
            document[form]["throughput"] = self.batch_size / document[form]["median"]
        return document


@dataclass(frozen=True)
class BenchResult:
    """Everything `sapp bench` says."""

    path: Path
    model: str
    machine: Machine
    settings: Settings
    layers: tuple[LayerResult, ...]
    models: tuple[ModelResult, ...]
    replaced: int
    linear: int
    """Layers that are block-sparse, and those that could be."""
    weight_bytes: dict[str, int]
    """In memory, {dense, block_sparse}."""
    file_bytes: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "checkpoint": str(self.path),
            "model": self.model,
            "machine": asdict(self.machine),
            "settings": asdict(self.settings),
            "replaced_layers": self.replaced,
            "linear_layers": self.linear,
            "end_to_end": [result.as_json() for result in self.models],
            "layers": [result.as_json() for result in self.layers],
            "weight_bytes": self.weight_bytes,
            "file_bytes": self.file_bytes,
        }
