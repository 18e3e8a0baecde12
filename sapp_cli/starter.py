"""A commented recipe for one checkpoint: what `sapp recipes init` writes, from file headers and config.json alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.reparametrized import parts_of_weights
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.inputs import heads
from sapp_cli.inputs.heads import architecture_of, head_of, kinds_of_labels
from sapp_cli.inputs.positions import positions_of
from sapp_cli.inputs.sentences import sentence_modules
from sapp_cli.inputs.wrapped_names import unwrapped, without_wrappers
from sapp_cli.recipe.shipped import shipped_values

BLOCKS = (8, 16, 32, 64)
MIN_BLOCKS = 100
OUTPUT_LAYERS = ("lm_head", "classifier", "score", "cls", "qa_outputs", "head", "output", "fc")
RECURRENT = re.compile(r"(^|\.)weight_(ih|hh|hr)_l\d+(_reverse)?$")
GATES = {4: "LSTM", 3: "GRU"}
EMBEDDINGS = ("embed", "wte", "wpe", "position_ids")


OWN: Mapping[str, Mapping[str, Any]] = {
    "data": {"batch_size": 32},
    "objective": {"distill": {"weight": 0.5}},
    "optimizer": {"lr": 2e-4},
    "train": {"steps": 1000, "evaluate_every": 200, "clip_norm": 1.0},
    "prune": {"block_size": 16, "sparsity": 0.8},
}
"""Values for tasks without a shipped recipe; all other tasks take those of theirs, so that there is one set of values."""
TAKEN = {
    "data": ("max_length", "batch_size", "workers"),
    "objective": ("distill",),
    "optimizer": ("lr", "betas"),
    "train": ("steps", "epochs", "accumulate", "precision", "evaluate_every", "evaluation_rows", "clip_norm"),
    "prune": ("sparsity",),
}
"""Keys that a new recipe takes from the shipped one if that sets them; block and rules follow from the checkpoint."""
COMMENTS = {
    "max_length": "tokens of a text; longer ones are cut",
    "distill": "how much the dense model teaches; a second model in memory",
    "lr": "try half and twice this",
    "steps": "more is better: most of what pruning costs comes back with time",
    "epochs": "passes over the rows; more is better: most of what pruning costs comes back with time",
    "accumulate": "batches a step",
    "sparsity": "of the blocks",
}
WIDTH = 32  # where comments begin


@dataclass(frozen=True)
class Task:
    """What a class of models is trained for, and where its data usually lies: lines of the sections objective and data."""

    name: str
    data: str
    objective: Sequence[str] = ()
    recipe: str | None = None  # the shipped one, whose values it takes
    has_teacher: bool = True  # the dense model's outputs are worth learning

    @property
    def values(self) -> Mapping[str, Mapping[str, Any]]:
        """The sections with the values of a new recipe."""
        return OWN if self.recipe is None else shipped_values(self.recipe)


FILES = "  files:\n    train: train.{ending}          # {what}\n    validation: validation.{ending}"
TEXT = "  format: text\n" + FILES
TENSORS = "  source: tensors\n  files:\n    train: train.npz              # {what}\n    validation: validation.npz"
IMAGES = "  format: imagefolder\n  files:\n    train: train                  # {what}\n    validation: validation"

TEXT_CLASSIFICATION = Task(
    "classification",
    FILES.format(ending="jsonl", what='lines {"text": …, "label": …}; csv and parquet too'),
    recipe=heads.SEQUENCE_CLASSIFICATION.recipe,
)
IMAGE_CLASSIFICATION = Task(
    "classification", IMAGES.format(what="one subfolder a class"), recipe=heads.IMAGE_CLASSIFICATION.recipe
)
LABELLED_IMAGES = FILES.format(ending="parquet", what="columns `image` and `label`, a number or a list of 0 and 1")
TENSOR_CLASSIFICATION = Task("classification", TENSORS.format(what="arrays `inputs` and `targets`; safetensors too"))
AUDIO_CLASSIFICATION = Task(
    "classification", TENSORS.format(what="arrays `inputs`, as the model's processor makes them, and `targets`")
)
CAUSAL_LM = Task("causal-lm", TEXT.format(ending="txt", what="plain text"), recipe=heads.CAUSAL_LM.recipe)
MASKED_LM = Task("masked-lm", TEXT.format(ending="txt", what="plain text"))
TEXT_EMBEDDING = Task(
    "embedding-distillation",
    TEXT.format(ending="txt", what="one sentence a line; no labels are needed"),
    recipe=heads.NO_HEAD.recipe,
)
IMAGE_EMBEDDING = replace(TEXT_EMBEDDING, data=IMAGES.format(what="no labels are needed"))
YOURS = Task(
    "factory",
    TENSORS.format(what="arrays named as your function wants them; or `source: factory`"),
    (
        "  factory: objective.py:loss      # a function of yours, in a file beside this one:",
        '                                  # (model, batch) -> {"loss": tensor, "metrics": {name: (sum, count)}}',
        "  higher_is_better: {}            # of each metric",
    ),
    has_teacher=False,  # the function would have to ask for one
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


def _as_config_says(task: Task, checkpoint: Checkpoint) -> Task:
    """The task with what config.json says of a classifier's labels, and modules.json of an encoder's pooling.

    Raises CheckpointError or SettingError if these files are damaged or ask for what sapp does not do.
    """
    if task.name == "classification" and checkpoint.config is not None:
        kinds, why = kinds_of_labels(checkpoint.config, f"{checkpoint.path}/config.json")
        if kinds[0] != task.name:
            data = (
                LABELLED_IMAGES
                if task is IMAGE_CLASSIFICATION
                else task.data.replace(
                    '"label": …}', '"label": [0, 1, …]}' if kinds == ("binary",) else '"label": 0.5}'
                )
            )
            task = replace(task, name=kinds[0], data=data, objective=(f"  # config.json has {why}", *task.objective))
    if task.name == "embedding-distillation":
        modules = sentence_modules(checkpoint.folder)
        source = (
            "null is mean; cls, max and more" if modules is None else f"as {modules.place.parent.name}/config.json says"
        )
        line = f"  pooling: {'mean' if modules is None else modules.pooling:<22} # {source}"
        left_out = (f"  # {text}" for text in (modules.left_out if modules else ()))
        return replace(task, objective=(line, *left_out))
    if task.has_teacher and (absent := _head_that_is_absent(checkpoint)):
        # The teacher is the dense model itself: without its head its outputs are random, and learning them is worse than
        # learning from the labels alone.
        why = f"  # no distill: the file has no {json.dumps(absent)}, so the dense model has nothing to teach yet"
        return replace(task, objective=(*task.objective, why), has_teacher=False)
    return task


def starter_recipe(checkpoint: Checkpoint) -> str:
    """The text of a recipe that `sapp plan` accepts for this checkpoint as it is; its comments say what to fill in.

    Raises CheckpointError if the checkpoint holds no weight.
    """
    checkpoint.require_weights()
    architecture = architecture_of(checkpoint.config)
    task = _as_config_says(_task(checkpoint.config), checkpoint)
    values = task.values
    shares = {block: _share(checkpoint, block) for block in BLOCKS}
    block = _block(shares, values["prune"]["block_size"])
    share = 100 * values["prune"]["sparsity"]
    trained_for = "a loss of your own" if task.name == "factory" else task.name
    lines = [
        f"# {_title(checkpoint, architecture)}: {trained_for}, {share:.0f} % in {block}×{block} blocks",
        "#",
        "# Look first, without training and without the data:  sapp plan CHECKPOINT -r THIS_FILE",
        "# Then:                                               sapp prune CHECKPOINT -r THIS_FILE -o OUT",
        "# All keys and their meaning: `sapp recipes schema`; editors show them while you type.",
        "",
    ]
    if architecture is None:
        lines += [
            "model:",
            "  # The checkpoint does not say which network it is of. Write model.py beside this file, with a function",
            "  # `build` that returns the torch.nn.Module, or name one of your own: file.py:function, package.module:function.",
            "  factory: model.py:build",
            "",
        ]
    lines += ["data:", task.data, *_taken("data", task, checkpoint), ""]
    lines += ["objective:", f"  task: {task.name}", *task.objective, *_taken("objective", task, checkpoint), ""]
    for section in ("optimizer", "train", "prune"):
        lines += [f"{section}:", *_taken(section, task, checkpoint), ""]
    lines[-1] = _commented(f"  block_size: {block}", "rows and columns; [16, 32] works too")
    lines += [
        f"  #   {size:2}×{size:<2}: {share:4.0%} of the matrix weights lie in layers of {MIN_BLOCKS} blocks and more"
        for size, share in shares.items()
    ]
    lines += [f"  #   {text}" for text in _recurrent(checkpoint)]
    lines += [
        "  # The blocks of all layers compete for two budgets, parameters and multiply-adds, by what the loss loses with",
        "  # them; `allocation: uniform` gives each layer its own share, `floor` what each keeps in any case.",
    ]
    outputs = _output_layers(checkpoint)
    fewest = _fewest_blocks(checkpoint, block, outputs)
    if fewest is not None:
        lines += [
            f"  min_blocks: {fewest:<18}  # of a layer; the default of {MIN_BLOCKS} would leave all of these dense"
        ]
    if outputs:
        lines += ["  rules:"]
        lines += [
            f"    - {{match: {json.dumps(name)}, dense: true}}   # the output layer: small, and everything passes through it"
            for name in outputs
        ]
    return "\n".join(lines) + "\n"


def _taken(section: str, task: Task, checkpoint: Checkpoint) -> list[str]:
    """Lines of a section with the values that the task takes."""
    given = {key: task.values[section][key] for key in TAKEN[section] if key in task.values.get(section, {})}
    if not task.has_teacher:
        given.pop("distill", None)
    if "max_length" in given:
        given["max_length"] = min([given["max_length"], *positions_of(checkpoint.config or {}).values()])
    if "  format: imagefolder" in task.data or "source: tensors" in task.data:
        given.pop("max_length", None)
    return [_commented(f"  {key}: {_yaml(value)}", COMMENTS.get(key, "")) for key, value in given.items()]


def _commented(line: str, comment: str) -> str:
    return f"{line:<{WIDTH}}  # {comment}" if comment else line


def _yaml(value: Any) -> str:
    """A value of a shipped recipe on one line: 2e-4, [0.9, 0.95], {weight: 0.9, temperature: 2.0}."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, float) and 0 < value < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return json.dumps(value) if not isinstance(value, str) else value


def _title(checkpoint: Checkpoint, architecture: str | None) -> str:
    name = Path(checkpoint.path).resolve().name
    text = f"{name} ({architecture})" if architecture else name
    return "".join(character for character in text if character.isprintable())


def looks_like_an_embedding(name: str) -> bool:
    """By its name: headers say no more."""
    return any(part in name.lower() for part in EMBEDDINGS)


def _matrices(checkpoint: Checkpoint) -> list[tuple[str, MatrixLayout]]:
    """Floating weights of two or more dimensions that do not look like embeddings."""
    found = []
    for name in checkpoint.dense_names():
        shape = checkpoint.shape(name)
        is_matrix = len(shape) >= 2 and 0 not in shape and DTYPES[checkpoint.dtype(name)].floating
        if is_matrix and not looks_like_an_embedding(name):
            found.append((name, MatrixLayout("linear" if len(shape) == 2 else "conv", shape)))
    return found


def _share(checkpoint: Checkpoint, block: int) -> float:
    """Share of the matrix weights that lie in layers large enough for blocks of this size."""
    whole = fits = 0
    dense = dense_in_any_case(checkpoint)
    for name, layout in _matrices(checkpoint):
        rows, columns = layout.matrix
        whole += rows * columns
        if (
            name not in dense
            and min(rows, columns) >= block
            and BlockGrid(layout.matrix, (block, block)).count >= MIN_BLOCKS
        ):
            fits += rows * columns
    return fits / whole if whole else 0.0


def _block(shares: Mapping[int, float], preferred: int) -> int:
    """The preferred block, or a smaller one where it would leave out a tenth of the weights that the smaller one reaches."""
    if not any(shares.values()):
        return 8
    sizes = [size for size in reversed(BLOCKS) if size <= preferred]
    return next((size for size in sizes if shares[size] >= 0.9 * max(shares.values())), 8)


def dense_in_any_case(checkpoint: Checkpoint) -> set[str]:
    """Matrices of recurrent layers, and those of which torch computes a weight."""
    names = checkpoint.dense_names()
    parts = {name for weight in parts_of_weights(names) for name in weight.tensors}
    return parts | {name for name in names if RECURRENT.search(name)}


def _recurrent(checkpoint: Checkpoint) -> list[str]:
    """A line on each LSTM, GRU or RNN: how much of the matrix weights stays dense with it."""
    layers: dict[str, int] = {}
    for name, layout in _matrices(checkpoint):
        if RECURRENT.search(name):
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + math.prod(layout.shape)
    whole = sum(math.prod(layout.shape) for _, layout in _matrices(checkpoint))
    gates = {name: layout.matrix[0] // layout.matrix[1] for name, layout in _matrices(checkpoint)}
    found = []
    for layer, count in layers.items():
        kind = GATES.get(gates.get(f"{layer}.weight_hh_l0".lstrip("."), 0), "recurrent")
        place = f"'{layer}' ({kind})" if layer else kind
        found.append(f"{place}: {count:,} weights, {count / whole:.0%} of the matrix weights, stay dense")
    return found


def _fewest_blocks(checkpoint: Checkpoint, block: int, outputs: Sequence[str]) -> int | None:
    """A `min_blocks` for a network of small layers; None where the default does."""
    dense = dense_in_any_case(checkpoint) | set(outputs)
    grids = [
        BlockGrid(layout.matrix, (block, block)).count
        for name, layout in _matrices(checkpoint)
        if name not in dense and min(layout.matrix) >= block
    ]
    return max(1, max(grids) // 2) if grids and max(grids) < MIN_BLOCKS else None


def _output_layers(checkpoint: Checkpoint) -> list[str]:
    """Names of matrices that look like the last layer, and that the class of config.json has."""
    names = [name for name, _ in _matrices(checkpoint)]
    found = [name for name in names if without_wrappers(name, outer=2).split(".")[0] in OUTPUT_LAYERS]
    return _known_to_the_class(checkpoint, found)[:3]


def _known_to_the_class(checkpoint: Checkpoint, names: list[str]) -> list[str]:
    """A file may hold the head of another class as well; a rule for it would match nothing."""
    model = _empty_model(checkpoint) if names else None
    if model is None:
        return names
    known = set(model.state_dict())
    return [name for name, candidates in _names_in(model, names, known).items() if not known.isdisjoint(candidates)]


def _head_that_is_absent(checkpoint: Checkpoint) -> str | None:
    """A parameter of the class's head that the file lacks, as where a classifier was made of a pretrained body alone."""
    model = _empty_model(checkpoint)
    body = str(getattr(model, "base_model_prefix", ""))
    if model is None or not hasattr(model, body):
        return None
    found = _names_in(model, checkpoint.dense_names(), set(model.state_dict()))
    stored = {candidate for candidates in found.values() for candidate in candidates}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())  # a tied head is in the file under its other name
    own = (name for name, _ in model.named_parameters() if not name.startswith(f"{body}.") and name not in tied)
    return next((name for name in own if name not in stored), None)


def _empty_model(checkpoint: Checkpoint) -> Any:
    """The model of the class that config.json names, without values; None if there is none, or none can be built."""
    if architecture_of(checkpoint.config) is None:
        return None
    try:
        from sapp_cli.inputs.models import empty_model

        return empty_model(checkpoint)
    except Exception:  # of the library, whatever it finds wrong; `plan` says it
        return None


def _names_in(model: Any, names: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """{name of the file: what it may be called in the model}."""
    from sapp_cli.inputs.models import candidate_names

    prefix = str(getattr(model, "base_model_prefix", ""))
    plain = unwrapped(names, lambda name: not known.isdisjoint(candidate_names(name, prefix)))
    return {name: candidate_names(plain[name], prefix) for name in names}
