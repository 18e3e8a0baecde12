"""Small outputs of sapp, written file by file, every figure of them worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sapp_cli.checkpoint.block_sparse import gather, kept_blocks
from sapp_cli.checkpoint.block_sparse_file import block_sparse_metadata, block_sparse_out
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.output import sha256_file
from sapp_cli.checkpoint.write import TensorOut, write_safetensors
from sapp_cli.grid import BlockGrid, MatrixLayout
from tests.checkpoint.files import save

FIRST = np.kron([[1, 0, 0], [0, 2, 0]], np.ones((2, 2))).astype(np.float32)  # (4, 6): 2 of 6 blocks of 2×2 kept
SECOND = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
BIAS = np.array([1, 0, 2], np.float32)
MANIFEST = {
    "version": 1,
    "sapp_version": "0.1.0",
    "method": "magnitude",
    "seed": 0,
    "steps": 40,
    "phases": [
        {"phase": "dense", "round": 0, "first_step": 1, "last_step": 10},
        {"phase": "sparse", "round": 0, "first_step": 11, "last_step": 40},
    ],
    "metrics": {
        "accuracy": {"dense": 0.97, "pruned": 0.96, "higher_is_better": True},
        "loss": {"dense": 0.5, "pruned": 0.45, "higher_is_better": False},
    },
}
RECORDS = [
    {"step": 10, "phase": "dense", "sparsity": 0.0, "loss": 2.0, "metrics": {"accuracy": 0.9, "loss": 0.7}},
    {"step": 20, "phase": "sparse", "sparsity": 2 / 3, "loss": 0.05},
    {"step": 40, "phase": "sparse", "sparsity": 2 / 3, "loss": 0.5, "metrics": {"accuracy": 0.96, "loss": 0.45}},
]


def layer(name: str, shape: list[int], **changes: Any) -> dict[str, Any]:
    """An entry of sparsity.json."""
    entry = {
        "name": name,
        "shape": shape,
        "layout": "linear",
        "block": None,
        "blocks": None,
        "kept_blocks": None,
        "block_sparsity": None,
        "sparsity": 0.0,
        "target": None,
        "bytes_dense": 4 * int(np.prod(shape)),
        "bytes_sparse": 4 * int(np.prod(shape)),
        "prunable": True,
        "pruned": False,
        "reason": "rule 'second*'",
    }
    return {**entry, **changes}


def write_output(folder: Path, dense: bool = True, sparse: bool = True) -> Path:
    """An output of a run: `first.weight` pruned in blocks of 2×2, `second.weight` kept dense, a bias."""
    (folder / "sparse").mkdir(parents=True)
    if dense:
        tensors = {"first.weight": FIRST, "second.weight": SECOND, "second.bias": BIAS}
        save(folder / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()}, {"format": "pt"})
    layout, grid = MatrixLayout("linear", (4, 6)), BlockGrid((4, 6), (2, 2))
    kept = kept_blocks(FIRST, grid, DTYPES["F32"])
    outs = [
        *block_sparse_out("first.weight", "F32", grid, kept, lambda: gather(FIRST, grid, kept)),
        TensorOut("second.weight", "F32", (3, 4), lambda: SECOND),
        TensorOut("second.bias", "F32", (3,), lambda: BIAS),
    ]
    if sparse:
        write_safetensors(
            folder / "sparse/model.safetensors", outs, block_sparse_metadata({"first.weight": (layout, grid)}, {})
        )
    first = layer(
        "first.weight",
        [4, 6],
        block=[2, 2],
        blocks=6,
        kept_blocks=2,
        block_sparsity=4 / 6,
        sparsity=16 / 24,
        target=0.65,
        bytes_sparse=52,
        pruned=True,
        reason="pruned",
    )
    (folder / "sparsity.json").write_text(json.dumps({"version": 1, "layers": [first, layer("second.weight", [3, 4])]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    write_manifest(folder)
    return folder


def count_work(folder: Path) -> Path:
    """The output of a run that saw its model at work: each weight is applied ten times to an example."""
    path = folder / "sparsity.json"
    document = json.loads(path.read_text())
    for entry in document["layers"]:
        entry["multiply_adds"] = 10 * int(np.prod(entry["shape"]))
    path.write_text(json.dumps(document))
    return folder


def write_manifest(folder: Path, **changes: Any) -> None:
    """The manifest of a run, with the hashes of the weight files that are there."""
    files = sorted(folder.rglob("*.safetensors"))
    outputs = {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "outputs": outputs, **changes}))
