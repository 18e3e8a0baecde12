"""What `sapp bench` measures: a model with dense and with block-sparse layers, on one machine, taken in turns.

Both forms hold the same weights and get the same inputs. Their outputs are compared before anything is timed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import UsageError
from sapp_cli.inputs.models import LoadedModel, load_model, require_whole
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime.bench_forms import TOLERANCES, Forms, check_outputs, faster_forms, main_output, time_pair
from sapp_cli.runtime.bench_layers import bench_layers, block_sparse_layers
from sapp_cli.runtime.bench_results import BenchResult, ModelResult, Settings
from sapp_cli.runtime.example_inputs import BenchInputs, Given, generated_inputs
from sapp_cli.runtime.heap import keep_freed_memory
from sapp_cli.runtime.load import load_and_explain, obstacle
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.random_mask import mask_at_random, replace_masked


def bench(
    path: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
    *,
    loaded: LoadedModel | None = None,
    inputs: BenchInputs | None = None,
    section: PruneSection | None = None,
) -> BenchResult:
    """Dense against block-sparse: every layer, and the model end to end.

    A model and inputs that are not given are made from the checkpoint's folder, which must then be one of Hugging Face.
    `section` says which layers a random mask is for. On a CPU the process keeps freed memory from now on, for both forms alike.

    Raises CheckpointError for a checkpoint that cannot be read,
    UsageError where there is nothing to compare or no way to build the model.
    """
    settings = replace(settings, device=_device(settings.device))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(settings.threads or before)
        with torch.inference_mode():
            return _bench(path, settings, say, loaded, inputs, section or PruneSection())
    finally:
        torch.set_num_threads(before)


def _bench(
    path: Path,
    settings: Settings,
    say: Callable[[str], None],
    loaded: LoadedModel | None,
    inputs: BenchInputs | None,
    section: PruneSection,
) -> BenchResult:
    checkpoint = open_checkpoint(path)
    if loaded is None:
        loaded = load_model(checkpoint, ModelSection())
        if settings.random_mask is None:  # with one, blocks of the trained weights go at random as well
            require_whole(loaded, path)
    inputs = inputs or generated_inputs(loaded.model, settings.batch_sizes, settings.sequence_lengths)
    keeps = settings.device == "cpu" and keep_freed_memory()
    device, dtype = torch.device(settings.device), torch.bfloat16 if settings.bf16 else torch.float32
    dense = loaded.model.to(device, dtype)
    if settings.random_mask is not None:
        masked = mask_at_random(dense, settings.random_mask, section, loaded.stored_names)
        sparse, kept_dense = replace_masked(copy.deepcopy(dense), masked)
    else:
        sparse = copy.deepcopy(dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a head that starts at random: it is the same in both
            kept_dense = load_and_explain(sparse, path)
    replaced = block_sparse_layers(sparse)
    if not replaced:
        raise UsageError(f"{path}: {_nothing_to_compare(kept_dense)}")
    say(f"{path}: {loaded.description}; {len(replaced)} layers block-sparse")
    models, layers = [], []
    weight_bytes: dict[str, int] = {}
    for plain in inputs.given(dense):
        given = plain.prepared(device, dtype)
        say(f"{given.text}: {len(replaced)} layers, then the model")
        forms = faster_forms(dense, sparse, given, settings.seconds / 5)
        layers += bench_layers(forms, given, settings)
        models.append(_bench_model(forms, given, settings))
        weight_bytes = {name: _weight_bytes(form.model) for name, form in forms.items()}
    return BenchResult(
        path=path,
        model=loaded.description,
        machine=this_machine(device, keeps_freed_memory=keeps),
        settings=settings,
        inputs=inputs.description,
        layers=tuple(layers),
        models=tuple(models),
        replaced=len(replaced),
        replaceable=sum(obstacle(dense, name) is None for name, _ in dense.named_modules()),
        kept_dense=kept_dense,
        weight_bytes=weight_bytes,
        file_bytes=_file_bytes(checkpoint),
    )


def _nothing_to_compare(kept_dense: Mapping[str, str]) -> str:
    if not kept_dense:
        return (
            "no layer of this checkpoint is block-sparse, so there is nothing to compare; give an output of "
            "`sapp prune`, or estimate with --random-mask"
        )
    name, why = next(iter(kept_dense.items()))
    others = len(kept_dense) - 1
    more = f", and {others} more" if others else ""
    return f"every pruned layer stays dense, so there is nothing to compare: '{name}', for {why}{more}"


def _device(wanted: str) -> str:
    """A GPU where there is one, unless the CPU is wanted. Raises UsageError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no GPU here; take --device cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _bench_model(forms: Forms, given: Given, settings: Settings) -> ModelResult:
    dense, sparse = forms["dense"], forms["block_sparse"]
    difference = check_outputs(main_output(dense.run()), main_output(sparse.run()), "the model")
    return ModelResult(
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        inputs=given.shapes,
        memory_formats={name: form.memory_format for name, form in forms.items()},
        difference=difference,
        tolerance=TOLERANCES[torch.bfloat16 if settings.bf16 else torch.float32],
        times=time_pair({name: form.run for name, form in forms.items()}, settings.seconds, given),
    )


def _weight_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers in memory, block-sparse layers with what they hold besides."""
    layers = block_sparse_layers(model)
    counted = {
        id(layer): layer.weight_bytes + (0 if layer.bias is None else layer.bias.nbytes) for layer in layers.values()
    }
    for name, module in model.named_modules():
        if name in layers or name.rpartition(".")[0] in layers:
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            counted[id(tensor)] = tensor.nbytes
    return sum(counted.values())


def _file_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Of the weight files: of the one that was given, and of the block-sparse one beside it."""
    sizes = {"given": sum(file.path.stat().st_size for file in checkpoint.files)}
    beside = (checkpoint.folder or checkpoint.path.parent) / "sparse"
    if beside.is_dir():
        sizes["block_sparse"] = sum(file.stat().st_size for file in beside.glob("*.safetensors"))
    return sizes
