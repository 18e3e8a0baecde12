"""A commented recipe for one checkpoint: what `sapp recipes init` writes, from file headers and config.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.grid import BlockGrid, MatrixLayout

BLOCKS = (8, 16, 32, 64)
MIN_BLOCKS = 100
PREFERRED = 16  # large enough for kernels, small enough for accuracy
OUTPUT_LAYERS = ("lm_head", "classifier", "score", "cls", "qa_outputs", "head", "output", "fc")
EMBEDDINGS = ("embed", "wte", "wpe", "position_ids")


@dataclass(frozen=True)
class Task:
    """What a class of models is trained for, and where its data usually lies."""

    name: str
    metric: str
    data: str
    settings: str = ""


TEXT = "  files:\n    train: train.{ending}          # {what}\n    validation: validation.{ending}\n"
TASKS: Sequence[tuple[tuple[str, ...], Task]] = (
    (
        ("ForSequenceClassification",),
        Task(
            "classification",
            "accuracy",
            TEXT.format(ending="jsonl", what='lines {"text": …, "label": …}; csv and parquet too'),
        ),
    ),
    (
        ("ForCausalLM", "LMHeadModel"),
        Task(
            "causal-lm",
            "perplexity",
            "  format: text\n" + TEXT.format(ending="txt", what="plain text") + "  max_length: 512\n",
        ),
    ),
    (
        ("ForMaskedLM",),
        Task("masked-lm", "perplexity", "  format: text\n" + TEXT.format(ending="txt", what="plain text")),
    ),
    (
        ("ForImageClassification",),
        Task(
            "classification",
            "accuracy",
            "  format: imagefolder\n"
            "  files:\n    train: train                  # one subfolder a class\n    validation: validation\n",
        ),
    ),
    (
        ("Model",),
        Task(
            "embedding-distillation",
            "cosine to the dense encoder",
            "  format: text\n" + TEXT.format(ending="txt", what="one sentence a line; no labels are needed"),
        ),
    ),
)
TENSORS = Task(
    "classification",
    "accuracy",
    "  source: tensors\n  files:\n    train: train.npz              # arrays `inputs` and `targets`; safetensors too\n"
    "    validation: validation.npz\n",
)


def starter_recipe(checkpoint: Checkpoint) -> str:
    """The text of a recipe that `sapp plan` accepts for this checkpoint as it is; its comments say what to fill in."""
    architecture = _architecture(checkpoint.config)
    task = next((task for endings, task in TASKS if architecture and architecture.endswith(endings)), TENSORS)
    shares = {block: _share(checkpoint, block) for block in BLOCKS}
    block = _block(shares)
    lines = [
        f"# {_title(checkpoint, architecture)}: {task.name}, 80 % in {block}×{block} blocks",
        "#",
        "# Look first, without training and without the data:  sapp plan CHECKPOINT -r THIS_FILE",
        "# Then:                                               sapp prune CHECKPOINT -r THIS_FILE -o OUT",
        "# All keys and their meaning: docs/recipes.md, or `sapp recipes schema` for your editor.",
        "",
    ]
    if architecture is None:
        lines += [
            "model:",
            "  factory: model.py:build         # a function of yours that returns the torch.nn.Module, beside this file",
            "",
        ]
    lines += [
        "data:",
        task.data.rstrip("\n"),
        "  batch_size: 32",
        "",
        "objective:",
        f"  task: {task.name}",
        *_distillation(task),
    ]
    lines += [
        "",
        "optimizer:",
        f"  lr: {'1e-3' if task.name == 'embedding-distillation' else '2e-4'}                        # try half and twice this",
        "",
        "train:",
        "  steps: 1000                     # more is better: most of what pruning costs comes back with time",
        "  evaluate_every: 200",
        "  clip_norm: 1.0",
        "",
        "prune:",
        "  sparsity: 0.8                   # of the blocks",
        f"  block_size: {block}                  # rows and columns; [16, 32] works too",
    ]
    lines += [
        f"  #   {size:2}×{size:<2}: {share:4.0%} of the matrix weights lie in layers of {MIN_BLOCKS} blocks and more"
        for size, share in shares.items()
    ]
    lines += [
        "  # The blocks of all layers compete for one budget of multiply-adds, by what the loss loses with them;",
        "  # `allocation: uniform` gives each layer its own share, `floor` what each keeps in any case.",
    ]
    outputs = _output_layers(checkpoint)
    if outputs:
        lines += ["  rules:"]
        lines += [
            f"    - {{match: {json.dumps(name)}, dense: true}}   # the output layer: small, and everything passes through it"
            for name in outputs
        ]
    return "\n".join(lines) + "\n"


def _distillation(task: Task) -> list[str]:
    if task.name == "embedding-distillation":
        return ["  pooling: mean                   # or cls"]
    return [
        "  distill: {weight: 0.5}          # half of the loss: to answer as the dense model does; a second model in memory"
    ]


def _architecture(config: Mapping[str, Any] | None) -> str | None:
    names = (config or {}).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _title(checkpoint: Checkpoint, architecture: str | None) -> str:
    name = Path(checkpoint.path).resolve().name
    text = f"{name} ({architecture})" if architecture else name
    return "".join(character for character in text if character.isprintable())


def _matrices(checkpoint: Checkpoint) -> list[tuple[str, MatrixLayout]]:
    """Floating weights of two or more dimensions that do not look like embeddings."""
    found = []
    for name in checkpoint.dense_names():
        shape = checkpoint.shape(name)
        is_matrix = len(shape) >= 2 and 0 not in shape and DTYPES[checkpoint.dtype(name)].floating
        if is_matrix and not any(part in name.lower() for part in EMBEDDINGS):
            found.append((name, MatrixLayout("linear" if len(shape) == 2 else "conv", shape)))
    return found


def _share(checkpoint: Checkpoint, block: int) -> float:
    """Share of the matrix weights that lie in layers large enough for blocks of this size."""
    whole = fits = 0
    for _, layout in _matrices(checkpoint):
        rows, columns = layout.matrix
        whole += rows * columns
        if min(rows, columns) >= block and BlockGrid(layout.matrix, (block, block)).count >= MIN_BLOCKS:
            fits += rows * columns
    return fits / whole if whole else 0.0


def _block(shares: Mapping[int, float]) -> int:
    """The preferred block, or a smaller one where it would leave out a tenth of the weights that the smaller one reaches."""
    return next((size for size in (PREFERRED, 8) if shares[size] >= 0.9 * max(shares.values())), 8)


def _output_layers(checkpoint: Checkpoint) -> list[str]:
    """Names of matrices that look like the last layer."""
    names = [name for name, _ in _matrices(checkpoint)]
    return [name for name in names if name.split(".")[0] in OUTPUT_LAYERS][:3]
