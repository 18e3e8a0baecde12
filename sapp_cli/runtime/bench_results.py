"""What `sapp bench` is asked and what it answers, as the table and `--json` show it. Times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sapp_cli.runtime.machine import Machine
from sapp_cli.runtime.timing import Timing


@dataclass(frozen=True)
class RandomMask:
    """Blocks left out at random, to estimate before any training; None: as the recipe says, else 16×16 and 0.9."""

    block: tuple[int, int] | None = None
    sparsity: float | None = None


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    batch_sizes: tuple[int, ...] = (1, 8)
    sequence_lengths: tuple[int, ...] = (128,)
    """Of generated token ids; the rows of a recipe have lengths of their own."""
    random_mask: RandomMask | None = None
    bf16: bool = False
    device: str = "cpu"
    """"auto", "cpu" or "cuda"; of a result the one that it was."""
    threads: int | None = None
    """None: as many as torch takes."""
    seconds: float = 3.0
    """For the model with one kind of input; layers get a tenth of it each."""


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
    """A layer with one kind of input; it stands for all layers that are alike in shape, blocks, share kept and input."""

    names: tuple[str, ...]
    kind: str
    """"linear" or "conv"."""
    matrix: tuple[int, int]
    block: tuple[int, int]
    blocks: int
    kept_blocks: int
    batch_size: int
    sequence_length: int | None
    rows: int
    """Of y: inputs × tokens of a Linear, inputs × pixels of a convolution."""
    way: str
    reason: str
    times: Pair

    def as_json(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name != "times"}
        return {**facts, **self.times.as_json()}


@dataclass(frozen=True)
class ModelResult:
    """The whole model with one kind of input."""

    batch_size: int
    sequence_length: int | None
    """None where inputs are no generated tokens."""
    inputs: Mapping[str, list[int]]
    """Shapes."""
    memory_formats: Mapping[str, str]
    """{dense, block_sparse}: "contiguous" or "channels-last", whichever made this form of a convolutional model faster."""
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
    inputs: str
    """Where they come from: "random token ids", or what the recipe's data are."""
    layers: tuple[LayerResult, ...]
    models: tuple[ModelResult, ...]
    replaced: int
    replaceable: int
    """Layers that are block-sparse, and those that could be."""
    kept_dense: Mapping[str, str]
    """Pruned layers that are computed dense all the same -> why."""
    weight_bytes: Mapping[str, int]
    """In memory, {dense, block_sparse}."""
    file_bytes: Mapping[str, int]
    """Of the weight files, {given, block_sparse}; the latter where it lies beside the former."""

    def as_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "checkpoint": str(self.path),
            "model": self.model,
            "machine": {**asdict(self.machine), "text": self.machine.text},
            "settings": asdict(self.settings),
            "inputs": self.inputs,
            "replaced_layers": self.replaced,
            "replaceable_layers": self.replaceable,
            "kept_dense": dict(self.kept_dense),
            "end_to_end": [result.as_json() for result in self.models],
            "layers": [result.as_json() for result in self.layers],
            "weight_bytes": dict(self.weight_bytes),
            "file_bytes": dict(self.file_bytes),
        }
