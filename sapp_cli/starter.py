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
from sapp_cli.inputs import heads
from sapp_cli.inputs.heads import architecture_of, head_of

BLOCKS = (8, 16, 32, 64)
MIN_BLOCKS = 100
PREFERRED = 16  # large enough for kernels, small enough for accuracy
OUTPUT_LAYERS = ("lm_head", "classifier", "score", "cls", "qa_outputs", "head", "output", "fc")
EMBEDDINGS = ("embed", "wte", "wpe", "position_ids")


@dataclass(frozen=True)
class Task:
    """What a class of models is trained for, and where its data usually lies: lines of the sections objective and data."""

    name: str
    data: str
    objective: Sequence[str] = (
        "  distill: {weight: 0.5}          # half of the loss: to answer as the dense model does; a second model in memory",
    )


FILES = "  files:\n    train: train.{ending}          # {what}\n    validation: validation.{ending}"
TEXT = "  format: text\n" + FILES
TENSORS = "  source: tensors\n  files:\n    train: train.npz              # {what}\n    validation: validation.npz"
IMAGES = "  format: imagefolder\n  files:\n    train: train                  # {what}\n    validation: validation"
POOLING = ("  pooling: mean                   # or cls",)

TEXT_CLASSIFICATION = Task(
    "classification", FILES.format(ending="jsonl", what='lines {"text": …, "label": …}; csv and parquet too')
)
IMAGE_CLASSIFICATION = Task("classification", IMAGES.format(what="one subfolder a class"))
TENSOR_CLASSIFICATION = Task("classification", TENSORS.format(what="arrays `inputs` and `targets`; safetensors too"))
AUDIO_CLASSIFICATION = Task(
    "classification", TENSORS.format(what="arrays `inputs`, as the model's processor makes them, and `targets`")
)
CAUSAL_LM = Task("causal-lm", TEXT.format(ending="txt", what="plain text") + "\n  max_length: 512")
MASKED_LM = Task("masked-lm", TEXT.format(ending="txt", what="plain text"))
TEXT_EMBEDDING = Task(
    "embedding-distillation", TEXT.format(ending="txt", what="one sentence a line; no labels are needed"), POOLING
)
IMAGE_EMBEDDING = Task("embedding-distillation", IMAGES.format(what="no labels are needed"), POOLING)
YOURS = Task(
    "factory",
    TENSORS.format(what="arrays named as your function wants them; or `source: factory`"),
    (
        "  factory: objective.py:loss      # a function of yours, in a file beside this one:",
        '                                  # (model, batch) -> {"loss": tensor, "metrics": {name: (sum, count)}}',
        "  higher_is_better: {}            # of each metric",
    ),
)

SPEECH = ("num_mel_bins", "feat_extract_norm", "feature_projection_input_dim", "audio_config")
"""Keys of config.json that only models of sound have."""
IMAGE = ("image_size", "num_channels", "patch_size")
TASKS = {
    heads.SEQUENCE_CLASSIFICATION: TEXT_CLASSIFICATION,
    heads.IMAGE_CLASSIFICATION: IMAGE_CLASSIFICATION,
    heads.CAUSAL_LM: CAUSAL_LM,
    heads.MASKED_LM: MASKED_LM,
    heads.NO_HEAD: TEXT_EMBEDDING,
}


def _task(config: Mapping[str, Any] | None) -> Task:
    """By the class's name; where that says the same of text, images and sound, by what else config.json has."""
    architecture = architecture_of(config)
    if config is None or architecture is None:
        return TENSOR_CLASSIFICATION
    head = head_of(architecture)
    hears, sees = any(key in config for key in SPEECH), any(key in config for key in IMAGE)
    if hears:
        classifies = head is heads.SEQUENCE_CLASSIFICATION or architecture.endswith("ForAudioClassification")
        return AUDIO_CLASSIFICATION if classifies else YOURS
    if head is None or (head is heads.NO_HEAD and "vision_config" in config):
        return YOURS
    return IMAGE_EMBEDDING if head is heads.NO_HEAD and sees else TASKS[head]


def starter_recipe(checkpoint: Checkpoint) -> str:
    """The text of a recipe that `sapp plan` accepts for this checkpoint as it is; its comments say what to fill in.

    Raises CheckpointError if the checkpoint holds no weight.
    """
    checkpoint.require_weights()
    architecture = architecture_of(checkpoint.config)
    task = _task(checkpoint.config)
    shares = {block: _share(checkpoint, block) for block in BLOCKS}
    block = _block(shares)
    trained_for = "a loss of your own" if task is YOURS else task.name
    lines = [
        f"# {_title(checkpoint, architecture)}: {trained_for}, 80 % in {block}×{block} blocks",
        "#",
        "# Look first, without training and without the data:  sapp plan CHECKPOINT -r THIS_FILE",
        "# Then:                                               sapp prune CHECKPOINT -r THIS_FILE -o OUT",
        "# All keys and their meaning: `sapp recipes schema`; editors show them while you type.",
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
        task.data,
        "  batch_size: 32",
        "",
        "objective:",
        f"  task: {task.name}",
        *task.objective,
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
        "  # The blocks of all layers compete for two budgets, parameters and multiply-adds, by what the loss loses with",
        "  # them; `allocation: uniform` gives each layer its own share, `floor` what each keeps in any case.",
    ]
    outputs = _output_layers(checkpoint)
    if outputs:
        lines += ["  rules:"]
        lines += [
            f"    - {{match: {json.dumps(name)}, dense: true}}   # the output layer: small, and everything passes through it"
            for name in outputs
        ]
    return "\n".join(lines) + "\n"


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
