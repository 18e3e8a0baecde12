"""The layers of a checkpoint known only by its files: one of ours by its sparsity.json, any other by its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.reparametrized import parts_of_weights
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from sapp_cli.report.run import home_of
from sapp_cli.report.sparsity import LayerFacts

SPARSITY_FILE = "sparsity.json"
DEFAULT_BLOCK = (16, 16)
MOST_NAMES = 4
EXPERTS = "3-D expert weights are not supported"


@dataclass(frozen=True)
class Recorded:
    """A layer as the sparsity.json of a run has it: what was decided, and what was counted then."""

    name: str
    layout: LayoutKind | None
    block: tuple[int, int] | None
    target: float | None
    prunable: bool
    pruned: bool
    reason: str
    kept_blocks: int | None
    sparsity: float
    multiply_adds: int | None
    no_gain: str | None


def layer_facts(checkpoint: Checkpoint, block: tuple[int, int] | None) -> list[LayerFacts]:
    """What is known of the layers of a checkpoint.

    `block`: see every weight in blocks of this size; None takes those of the run, or of the file, and 16×16 for the rest.
    Raises CheckpointError for a sparsity.json that is none, or that speaks of weights of other shapes.
    """
    home = home_of(checkpoint)
    known = recorded_layers(home) or {}
    stored = {*checkpoint.dense_names(), *checkpoint.tied}
    names = dict.fromkeys(name for name in known if name in stored)
    for name in checkpoint.dense_names():
        if name in checkpoint.block_sparse or (not known and _is_weight(checkpoint, name)):
            names.setdefault(name)
    if home is not None:
        _check_layouts(home / SPARSITY_FILE, checkpoint, known)
    return [_facts(checkpoint, name, known.get(name), block) for name in names]


def left_out(checkpoint: Checkpoint, layers: Sequence[LayerFacts]) -> list[str]:
    """Lines on the weights that are not among the layers of a checkpoint known only by its tensors."""
    if recorded_layers(home_of(checkpoint)):
        return []
    shown = {checkpoint.tied.get(layer.name, layer.name) for layer in layers}
    shapes = {name: checkpoint.shape(name) for name in checkpoint.dense_names() if _is_floating(checkpoint, name)}
    weights = parts_of_weights(list(shapes))
    shown |= {name for weight in weights for name in weight.tensors}
    rest = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in shown]
    lines = []
    if rest:
        left, whole = (sum(math.prod(shapes[name]) for name in names) for names in (rest, shapes))
        lines.append(
            f"not in the table: {_some(rest)}, whose names do not end in 'weight': {left:,} of {whole:,} parameters"
        )
    parts: dict[tuple[str, str], list[str]] = {}
    for weight in weights:
        parts.setdefault((weight.made_by, weight.remedy), []).append(weight.name)
    lines += [
        f"stored as the parts of {made_by}: {_some(names)}; for plain weights call {remedy} and save again"
        for (made_by, remedy), names in parts.items()
    ]
    return [f"{checkpoint.path}: {line}" for line in lines]


def recorded_layers(folder: Path | None) -> dict[str, Recorded] | None:
    """{name: its entry in the folder's sparsity.json}; None where there is no such file."""
    if folder is None or not (folder / SPARSITY_FILE).is_file():
        return None
    path = folder / SPARSITY_FILE
    layers = read_object(path, "the sparsity report", CONFIG_LIMIT).get("layers")
    if not isinstance(layers, list):
        raise damaged(path, "is not a sparsity report of sapp: it has no list of layers")
    found = [_recorded(path, entry) for entry in layers]
    return {layer.name: layer for layer in found}


def _recorded(path: Path, entry: Any) -> Recorded:
    """The entry, every value of the type that the report gives it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise damaged(path, "is not a sparsity report of sapp: a layer has no name")
    name, block, layout = entry["name"], entry.get("block"), entry.get("layout")
    problems = {
        "layout": layout is None or layout in get_args(LayoutKind),
        "block": block is None or (_is_list_of_counts(block) and len(block) == 2 and min(block) >= 1),
        "target": entry.get("target") is None or _is_share(entry["target"]),
        "kept_blocks": entry.get("kept_blocks") is None or _is_list_of_counts([entry["kept_blocks"]]),
        "multiply_adds": entry.get("multiply_adds") is None or _is_list_of_counts([entry["multiply_adds"]]),
        "no_gain": entry.get("no_gain") is None or isinstance(entry["no_gain"], str),
        "sparsity": _is_share(entry.get("sparsity")),
        "prunable": isinstance(entry.get("prunable", True), bool),
        "pruned": isinstance(entry.get("pruned"), bool),
        "reason": isinstance(entry.get("reason"), str),
    }
    for key, fine in problems.items():
        if not fine:
            raise damaged(path, f"'{key}' is missing, or not what a sparsity report has there", name)
    return Recorded(
        name=name,
        layout=layout,
        block=(block[0], block[1]) if block is not None else None,
        target=entry.get("target"),
        prunable=entry.get("prunable", True),
        pruned=entry["pruned"],
        reason=entry["reason"],
        kept_blocks=entry.get("kept_blocks"),
        sparsity=entry["sparsity"],
        multiply_adds=entry.get("multiply_adds"),
        no_gain=entry.get("no_gain"),
    )


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_weight(checkpoint: Checkpoint, name: str) -> bool:
    """Any floating `*weight` of two or more dimensions: without the model, nothing more can be known."""
    if not _is_floating(checkpoint, name):
        return False
    return _is_expert(checkpoint, name) or (name.endswith("weight") and len(checkpoint.shape(name)) >= 2)


def _is_floating(checkpoint: Checkpoint, name: str) -> bool:
    return DTYPES[checkpoint.dtype(name)].floating


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(quoted, names[:MOST_NAMES])) + more


def _is_expert(checkpoint: Checkpoint, name: str) -> bool:
    """Experts that lie in one tensor, (experts, …, …), as Hugging Face stores them."""
    return ".experts." in name and len(checkpoint.shape(name)) == 3


def _check_layouts(path: Path, checkpoint: Checkpoint, known: Mapping[str, Recorded]) -> None:
    """Raise CheckpointError for a recorded layout that the weight's shape cannot have."""
    stored = {*checkpoint.dense_names(), *checkpoint.tied}
    for name in stored & known.keys():
        layout, shape = known[name].layout, checkpoint.shape(name)
        if layout is not None and len(shape) != 2 and (layout != "conv" or len(shape) < 2):
            raise damaged(path, f"layout {layout} does not fit its shape {list(shape)}", name)


def _facts(checkpoint: Checkpoint, name: str, known: Recorded | None, block: tuple[int, int] | None) -> LayerFacts:
    shape = checkpoint.shape(name)
    entry = checkpoint.block_sparse.get(checkpoint.tied.get(name, name))
    unsupported = known is None and entry is None and _is_expert(checkpoint, name)
    kind: LayoutKind | None = "linear" if len(shape) == 2 else "conv"
    if known is not None or unsupported:
        kind = known.layout if known else None
    if entry is not None:
        kind = entry.layout.kind
    layout = MatrixLayout(kind, shape) if kind and 0 not in shape else None
    own = (known.block if known else None) or (entry.grid.block if entry else None)
    as_decided = block in (None, own)
    wanted = block or own or (None if known else DEFAULT_BLOCK)  # a run that left it dense gave it no blocks
    return LayerFacts(
        name=name,
        shape=shape,
        itemsize=DTYPES[checkpoint.dtype(name)].itemsize,
        prunable=known.prunable if known else not unsupported,
        pruned=known.pruned if known and as_decided else False if unsupported else None,
        reason=EXPERTS if unsupported else known.reason if known else "",
        layout=layout,
        grid=BlockGrid(layout.matrix, wanted) if layout and wanted else None,
        target=known.target if known and as_decided else None,
        multiply_adds=known.multiply_adds if known else None,
        no_gain=known.no_gain if known and as_decided else None,
    )
