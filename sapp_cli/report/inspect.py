"""The layers of a checkpoint known only by its files: one of ours by its sparsity.json, any other by its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from sapp_cli.report.sparsity import LayerFacts

SPARSITY_FILE = "sparsity.json"


def layer_facts(checkpoint: Checkpoint, block: tuple[int, int] | None) -> list[LayerFacts]:
    """What is known of the layers of a checkpoint.

    `block`: see every weight in blocks of this size; None takes those of the run, or of the file, and 16×16 for the rest.
    """
    known = _decisions(checkpoint)
    names = known or [name for name in checkpoint.dense_names() if _is_weight(checkpoint, name)]
    return [_facts(checkpoint, name, known.get(name, {}), block) for name in names if _stored(checkpoint, name)]


def _stored(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint.tensors or name in checkpoint.block_sparse or name in checkpoint.tied


def _is_weight(checkpoint: Checkpoint, name: str) -> bool:
    """Any floating `*weight` of two or more dimensions: without the model, nothing more can be known."""
    return name.endswith("weight") and len(checkpoint.shape(name)) >= 2 and DTYPES[checkpoint.dtype(name)].floating


def _decisions(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """{name: its entry in sparsity.json}; empty for a checkpoint that is not one of ours."""
    if checkpoint.folder is None or not (checkpoint.folder / SPARSITY_FILE).is_file():
        return {}
    path: Path = checkpoint.folder / SPARSITY_FILE
    document = read_object(path, "the sparsity report", CONFIG_LIMIT)
    try:
        return {str(layer["name"]): dict(layer) for layer in document["layers"]}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not a sparsity report of sapp ({error!r}); delete it, or run prune again"
        ) from error


def _facts(checkpoint: Checkpoint, name: str, decision: dict[str, Any], block: tuple[int, int] | None) -> LayerFacts:
    shape = checkpoint.shape(name)
    entry = checkpoint.block_sparse.get(checkpoint.tied.get(name, name))
    kind: LayoutKind | None = "linear" if len(shape) == 2 else "conv"
    if decision:
        kind = decision.get("layout")
    if entry is not None:
        kind = entry.layout.kind
    layout = MatrixLayout(kind, shape) if kind and 0 not in shape else None
    own = tuple(decision["block"]) if decision.get("block") else (entry.grid.block if entry else None)
    wanted = block or own or (16, 16)
    return LayerFacts(
        name=name,
        shape=shape,
        itemsize=DTYPES[checkpoint.dtype(name)].itemsize,
        prunable=bool(decision.get("prunable", True)),
        pruned=bool(decision["pruned"]) if "pruned" in decision and block in (None, own) else None,
        reason=str(decision.get("reason", "")),
        layout=layout,
        grid=BlockGrid(layout.matrix, wanted) if layout else None,
        target=decision.get("target") if block in (None, own) else None,
    )
