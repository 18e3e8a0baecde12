"""Speed as `sapp bench --save` measured it: an output's bench.json, as far as its card and its page show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import is_output, sha256_file

BENCH_FILE = "bench.json"


@dataclass(frozen=True)
class Times:
    """Of one call, dense and block-sparse: seconds, medians and interquartile ranges."""

    dense: float
    dense_spread: float
    sparse: float
    sparse_spread: float

    @property
    def speedup(self) -> float:
        return self.dense / self.sparse


@dataclass(frozen=True)
class ModelSpeed:
    """The whole model with one kind of input."""

    inputs: str
    """As in "batch 8, 128 tokens"."""
    batch_size: int
    times: Times

    @property
    def rates(self) -> tuple[float, float]:
        """Inputs a second, dense and block-sparse."""
        return self.batch_size / self.times.dense, self.batch_size / self.times.sparse


@dataclass(frozen=True)
class LayerSpeed:
    """Layers that are alike, with one kind of input."""

    names: tuple[str, ...]
    inputs: str
    matrix: tuple[int, int]
    block: tuple[int, int]
    kept: float
    """Share of the blocks."""
    rows: int
    way: str
    times: Times


@dataclass(frozen=True)
class SpeedRecord:
    """What was measured, on what."""

    machine: str
    """With versions and date."""
    precision: str
    inputs: str
    models: tuple[ModelSpeed, ...]
    layers: tuple[LayerSpeed, ...]
    weight_bytes: tuple[int, int]
    """In memory, dense and block-sparse."""
    weights: Mapping[str, str]
    """File, relative to the output -> SHA-256: figures of other weights are none of these."""

    def is_of(self, folder: Path) -> bool:
        """True if the weight files that the folder has now are those that were measured."""
        now = weight_files(folder)
        if not now or not set(now) <= set(self.weights):
            return False
        return all(sha256_file(folder / file) == self.weights[file] for file in now)


def weight_files(folder: Path) -> list[str]:
    """Of an output, relative to it."""
    found = [*folder.glob("*.safetensors"), *(folder / "sparse").glob("*.safetensors")]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def read_speed(folder: Path | None) -> SpeedRecord | None:
    """What bench.json says; None where there is none, or no output of sapp. Raises CheckpointError for a damaged one."""
    if folder is None or not (folder / BENCH_FILE).is_file() or not is_output(folder):
        return None
    path = folder / BENCH_FILE
    document = read_object(path, "the measured speed", CONFIG_LIMIT)
    try:
        return speed_of(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"is no result of `sapp bench --save` ({error}); remove it, or measure again") from None


def speed_of(document: Mapping[str, Any]) -> SpeedRecord:
    """Of the JSON document; KeyError, TypeError or ValueError where it is another one."""
    weight_bytes = document["weight_bytes"]
    return SpeedRecord(
        machine=str(document["machine"]["text"]),
        precision="bf16" if document["settings"]["bf16"] else "fp32",
        inputs=str(document["inputs"]),
        models=tuple(
            ModelSpeed(_inputs(result), int(result["batch_size"]), _times(result)) for result in document["end_to_end"]
        ),
        layers=tuple(
            LayerSpeed(
                names=tuple(map(str, result["names"])),
                inputs=_inputs(result),
                matrix=_pair(result["matrix"]),
                block=_pair(result["block"]),
                kept=int(result["kept_blocks"]) / int(result["blocks"]),
                rows=int(result["rows"]),
                way=str(result["way"]),
                times=_times(result),
            )
            for result in document["layers"]
        ),
        weight_bytes=(int(weight_bytes["dense"]), int(weight_bytes["block_sparse"])),
        weights={str(file): str(digest) for file, digest in document["weights_sha256"].items()},
    )


def _inputs(result: Mapping[str, Any]) -> str:
    length = result["sequence_length"]
    return f"batch {int(result['batch_size'])}" + (f", {int(length):,} tokens" if length else "")


def _times(result: Mapping[str, Any]) -> Times:
    dense, sparse = result["dense"], result["block_sparse"]
    numbers = [float(form[key]) for form in (dense, sparse) for key in ("median", "spread")]
    if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or 0 in (numbers[0], numbers[2]):
        raise ValueError("a time is no number of seconds")
    return Times(*numbers)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)
