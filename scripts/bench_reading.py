"""How fast, and in how much memory, per-block norms of a large sharded checkpoint are read, against a raw read of it.

    python scripts/bench_reading.py --out runs/large --gigabytes 4

writes a synthetic Llama-shaped checkpoint (half fp32, half bf16, four shards; kept for the next run), reads it once to warm the
page cache, then times in turn: a raw read of all bytes into one buffer, and norms, kept blocks and nonzero counts of every
weight. Each pass is a process of its own, so that its peak memory is its own too; medians of the ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.checkpoint.write import ShardOut, TensorOut, write_sharded
from sapp_cli.grid import BlockGrid, MatrixLayout

HIDDEN, INNER = 4096, 11008  # of one layer of Llama-7B
SHAPES = {"q": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
SLAB = 1 << 24  # bytes of the raw read's buffer


def make(folder: Path, gigabytes: float, shards: int = 4) -> None:
    """Write the checkpoint; every other shard is bf16."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
    outs = []
    for shard in range(shards):
        dtype, itemsize = (("F32", 4), ("BF16", 2))[shard % 2]
        values = noise if dtype == "F32" else (noise.view(np.uint32) >> 16).astype(np.uint16)
        tensors: list[TensorOut] = []
        while sum(tensor.nbytes for tensor in tensors) < gigabytes * 1e9 / shards:
            layer, position = divmod(len(tensors), len(SHAPES))
            part, shape = list(SHAPES.items())[position]
            room = gigabytes * 1e9 / shards - sum(tensor.nbytes for tensor in tensors)
            rows = min(shape[0], max(256, int(room / (shape[1] * itemsize))))
            name, size = f"shard{shard}.layer{layer}.{part}.weight", (rows, shape[1])
            tensors.append(TensorOut(name, dtype, size, lambda size=size, values=values: np.resize(values, size)))
        outs.append(ShardOut(f"model-{shard + 1:05}-of-{shards:05}.safetensors", tensors, {"format": "pt"}))
    write_sharded(folder, "model", outs, {})


def read_raw(folder: Path) -> None:
    buffer = bytearray(SLAB)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_norms(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.dense_names():
        layout = MatrixLayout("linear", checkpoint.shape(name))
        block_statistics(checkpoint, name, layout, BlockGrid(layout.matrix, (16, 16)))


def peak_mib() -> float:
    """Of this process alone: getrusage would count what the parent held before exec, too."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmHWM in /proc/self/status: peak memory is measured on Linux only")


def measured(folder: Path, what: str, threads: int) -> tuple[float, float]:
    """(seconds, peak MiB) of one pass in a process of its own."""
    command = [sys.executable, __file__, "--out", str(folder), "--only", what]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    return result["seconds"], result["peak_mib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/large"), help="folder of the checkpoint (default: %(default)s)"
    )
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["raw", "norms"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        began = time.perf_counter()
        (read_raw if arguments.only == "raw" else read_norms)(arguments.out)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))
        return
    if not arguments.out.exists():
        make(arguments.out, arguments.gigabytes)
    size = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors"))
    read_raw(arguments.out)
    passes = [
        (measured(arguments.out, "raw", 1), measured(arguments.out, "norms", 1)) for _ in range(arguments.repeats)
    ]
    ratios = [raw / norms for (raw, _), (norms, _) in passes]
    print(
        f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(
        f"checkpoint: {size / 1e9:.2f} GB in 4 shards, half fp32 and half bf16; medians of {arguments.repeats} warm passes"
    )
    print(f"raw read: {size / 1e9 / statistics.median(raw for (raw, _), _ in passes):.2f} GB/s")
    print(f"norms, kept blocks, nonzeros (16×16): {size / 1e9 / statistics.median(n for _, (n, _) in passes):.2f} GB/s")
    print(f"ratio: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"peak memory: {max(peak for _, (_, peak) in passes):.0f} MiB")


if __name__ == "__main__":
    main()
