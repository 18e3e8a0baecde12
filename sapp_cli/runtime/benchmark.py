"""What `sapp bench` measures: a model with dense and with block-sparse layers, on one machine, taken in turns.

Both forms hold the same weights and get the same inputs. Their outputs are compared before anything is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import SettingError, UsageError
from sapp_cli.inputs.models import load_model
from sapp_cli.layers import Layer, decide_layers
from sapp_cli.recipe.schema import ModelSection, PruneSection
from sapp_cli.runtime.bench_results import BenchResult, LayerResult, ModelResult, Pair, RandomMask, Settings
from sapp_cli.runtime.choice import bucket_of
from sapp_cli.runtime.example_inputs import example_inputs
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.load import load, replaceable
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.timing import time_in_turns

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Most that the outputs of both forms may differ, as a share of the largest output."""


def bench(path: Path, settings: Settings, say: Callable[[str], None] = lambda text: None) -> BenchResult:
    """Dense against block-sparse: every layer, and the model end to end.

    Raises CheckpointError for a checkpoint that cannot be read, UsageError where there is nothing to compare or no way
    to build the model.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(settings.threads or before)
        with torch.inference_mode():
            return _bench(path, settings, say)
    finally:
        torch.set_num_threads(before)


def _bench(path: Path, settings: Settings, say: Callable[[str], None]) -> BenchResult:
    checkpoint = open_checkpoint(path)
    loaded = load_model(checkpoint, ModelSection())
    dense = loaded.model.to(torch.bfloat16) if settings.bf16 else loaded.model
    if settings.random_mask is not None:
        masked = _mask_at_random(dense, settings.random_mask)
        sparse = _replace(copy.deepcopy(dense), masked)
    else:
        sparse = load(copy.deepcopy(dense), path)
    replaced = {name: layer for name, layer in sparse.named_modules() if isinstance(layer, BlockSparseLinear)}
    if not replaced:
        raise UsageError(
            f"{path}: no Linear layer of this checkpoint is block-sparse, so there is nothing to compare; give an output of "
            "`sapp prune`, or estimate with --random-mask"
        )
    say(f"{path}: {loaded.description}; {len(replaced)} layers block-sparse")
    models, layers = [], []
    for batch_size in settings.batch_sizes:
        inputs = example_inputs(dense, batch_size, settings.sequence_length)
        if settings.bf16:
            inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
        say(f"batch size {batch_size}: {len(replaced)} layers, then the model")
        seen = _inputs_of_layers(dense, list(replaced), inputs)
        layers += _bench_layers(dense, replaced, seen, batch_size, settings)
        models.append(_bench_model(dense, sparse, inputs, batch_size, settings))
    return BenchResult(
        path=path,
        model=loaded.description,
        machine=this_machine(),
        settings=settings,
        layers=tuple(layers),
        models=tuple(models),
        replaced=len(replaced),
        linear=sum(replaceable(dense, name) for name, _ in dense.named_modules()),
        weight_bytes={"dense": _weight_bytes(dense), "block_sparse": _weight_bytes(sparse)},
        file_bytes=_file_bytes(checkpoint),
    )


def _mask_at_random(model: nn.Module, mask: RandomMask) -> dict[str, Layer]:
    """{name of the module: layer} of those that a run with these settings would prune; their blocks are zeroed here."""
    section = PruneSection(block_size=list(mask.block), sparsity=mask.sparsity)
    try:
        layers = decide_layers(model, section)
    except SettingError as error:
        why = error.problems[0][1].rpartition("; ")[0]
        raise UsageError(f"--random-mask: {why}; take a smaller --block-size") from error
    generator = torch.Generator().manual_seed(0)
    masked = {}
    for layer in layers:
        name, _, attribute = layer.name.rpartition(".")
        if not layer.pruned or layer.aliases or attribute != "weight" or not replaceable(model, name):
            continue
        assert layer.grid is not None, "a pruned layer has a grid"
        kept = torch.zeros(layer.grid.count, dtype=torch.bool)
        kept[torch.randperm(layer.grid.count, generator=generator)[: layer.kept_count]] = True
        (br, bc), (out, columns) = layer.grid.block, layer.grid.matrix
        spread = kept.view(layer.grid.size).repeat_interleave(br, 0).repeat_interleave(bc, 1)[:out, :columns]
        matrix = _matrix(model, name, layer)
        matrix.copy_(torch.where(spread, matrix, 0.0))
        masked[name] = layer
    return masked


def _replace(model: nn.Module, masked: dict[str, Layer]) -> nn.Module:
    for name, layer in masked.items():
        assert layer.grid is not None, "a pruned layer has a grid"
        parent, _, attribute = name.rpartition(".")
        weight, bias = _matrix(model, name, layer), model.get_submodule(name).bias
        assert bias is None or isinstance(bias, Tensor), "a Linear or Conv1D"
        sparse = BlockSparseLinear.from_weight(weight, bias, layer.grid.block)
        setattr(model.get_submodule(parent), attribute, sparse.eval())
    return model


def _matrix(model: nn.Module, name: str, layer: Layer) -> Tensor:
    """The module's weight as (out, in), a view."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor) and layer.layout is not None, "a Linear or Conv1D"
    return weight.t() if layer.layout.kind == "transposed" else weight


def _inputs_of_layers(model: nn.Module, names: Sequence[str], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each of these layers is given when the model gets `inputs`."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].clone()

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _bench_layers(
    dense: nn.Module,
    replaced: dict[str, BlockSparseLinear],
    seen: dict[str, Tensor],
    batch_size: int,
    settings: Settings,
) -> list[LayerResult]:
    """One result for each kind of layer, in the model's order."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, layer in replaced.items():
        if name in seen:  # a layer may not be used at all
            share = round(len(layer.col) / layer.grid.count, 2)
            groups.setdefault((layer.grid, share, layer.bias is None, seen[name].shape), []).append(name)
    results = []
    for names in groups.values():
        name, layer = names[0], replaced[names[0]]
        x, linear = seen[name], dense.get_submodule(name)
        _check_outputs(linear(x), layer(x), name)
        times = _in_turns(linear, layer, lambda module, x=x: module(x), settings.seconds / 10)  # type: ignore[misc]
        rows = x.numel() // layer.in_features
        choice = next(choice for choice in reversed(layer.choices) if choice.bucket == bucket_of(rows))
        results.append(
            LayerResult(
                tuple(names),
                layer.grid.matrix,
                layer.grid.block,
                layer.grid.count,
                len(layer.col),
                batch_size,
                rows,
                choice.way,
                choice.reason,
                times,
            )
        )
    return results


def _bench_model(
    dense: nn.Module, sparse: nn.Module, inputs: dict[str, Tensor], batch_size: int, settings: Settings
) -> ModelResult:
    difference = _check_outputs(_main_output(dense(**inputs)), _main_output(sparse(**inputs)), "the model")
    return ModelResult(
        batch_size,
        {name: list(tensor.shape) for name, tensor in inputs.items()},
        difference,
        TOLERANCES[torch.bfloat16 if settings.bf16 else torch.float32],
        _in_turns(dense, sparse, lambda module: module(**inputs), settings.seconds),
    )


def _in_turns(dense: nn.Module, sparse: nn.Module, call: Callable[[nn.Module], Any], seconds: float) -> Pair:
    ways = {"dense": lambda: call(dense), "sparse": lambda: call(sparse)}
    timings = time_in_turns(ways, budget=seconds, sample=2e-3)
    return Pair(timings["dense"], timings["sparse"])


def _main_output(output: Any) -> Tensor:
    """Logits, or whatever else comes first."""
    first = output[0] if not isinstance(output, Tensor) else output
    assert isinstance(first, Tensor), f"a model that returns a {type(output).__name__}"
    return first


def _check_outputs(dense: Tensor, sparse: Tensor, where: str) -> float:
    """The largest difference as a share of the largest output; kernels that compute something else are not timed."""
    largest = dense.float().abs().max().item()
    difference = (dense.float() - sparse.float()).abs().max().item() / (largest or 1.0)
    tolerance = TOLERANCES[dense.dtype]
    if not difference <= tolerance:
        raise AssertionError(
            f"{where}: the dense and the block-sparse outputs differ by {difference:.1e} of the largest output; "
            f"{tolerance:.0e} is allowed. This is a bug of sapp, or the outputs are not finite"
        )
    return difference


def _weight_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers in memory, block-sparse layers with what they hold besides."""
    counted = {}
    for module in model.modules():
        if isinstance(module, BlockSparseLinear):
            counted[id(module)] = module.weight_bytes + (0 if module.bias is None else module.bias.nbytes)
        else:
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
