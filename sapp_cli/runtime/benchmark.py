"""What `sapp bench` measures: a model with dense and with block-sparse layers, on one machine, taken in turns.

Both forms hold the same weights and get the same inputs. Their outputs are compared before anything is timed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import UsageError
from sapp_cli.inputs.models import LoadedModel, load_model
from sapp_cli.recipe.schema import ModelSection, PruneSection
from sapp_cli.runtime.bench_results import BenchResult, LayerResult, ModelResult, Pair, Settings
from sapp_cli.runtime.choice import Choice, bucket_of
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.conv_choice import ConvChoice, conv_bucket_of
from sapp_cli.runtime.conv_products import is_channels_last
from sapp_cli.runtime.example_inputs import BenchInputs, Given, generated_inputs
from sapp_cli.runtime.gpu import wait_for
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.load import CONVOLUTIONS, load_and_explain, obstacle
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.random_mask import mask_at_random, replace_masked
from sapp_cli.runtime.timing import Timing, time_in_turns

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Most that the outputs of both forms may differ, as a share of the largest output."""
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels-last"
BlockSparse: TypeAlias = BlockSparseLinear | BlockSparseConv


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
    `section` says which layers a random mask is for. Raises CheckpointError for a checkpoint that cannot be read,
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
    loaded = loaded or load_model(checkpoint, ModelSection())
    inputs = inputs or generated_inputs(loaded.model, settings.batch_sizes, settings.sequence_lengths)
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
        raise UsageError(
            f"{path}: no layer of this checkpoint is block-sparse, so there is nothing to compare; give an output of "
            "`sapp prune`, or estimate with --random-mask"
        )
    say(f"{path}: {loaded.description}; {len(replaced)} layers block-sparse")
    models, layers = [], []
    weight_bytes: dict[str, int] = {}
    for plain in inputs.given(dense):
        given = plain.prepared(device, dtype)
        say(f"{given.text}: {len(replaced)} layers, then the model")
        forms = _faster_forms(dense, sparse, given, settings.seconds / 5)
        layers += _bench_layers(forms, given, settings)
        models.append(_bench_model(forms, given, settings))
        weight_bytes = {name: _weight_bytes(form.model) for name, form in forms.items()}
    return BenchResult(
        path=path,
        model=loaded.description,
        machine=this_machine(device),
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


def _device(wanted: str) -> str:
    """A GPU where there is one, unless the CPU is wanted. Raises UsageError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no GPU here; take --device cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def block_sparse_layers(model: nn.Module) -> dict[str, BlockSparse]:
    """{name: layer}; a convolution counts as itself, not as the matrix inside it."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, BlockSparse)}
    return {name: layer for name, layer in found.items() if name.rpartition(".")[0] not in found}


@dataclass(frozen=True)
class _Form:
    """The model in one form, and the inputs in the memory format that suits it."""

    model: nn.Module
    given: Given
    memory_format: str

    def run(self) -> Any:
        return self.given.call(self.model)


_Forms: TypeAlias = dict[str, _Form]
"""{dense, block_sparse}."""


def _faster_forms(dense: nn.Module, sparse: nn.Module, given: Given, seconds: float) -> _Forms:
    """Each form as it is, or, with convolutions of images in it, in channels-last memory where that is faster: the dense
    one is not to lose for a reason that has nothing to do with sparsity.
    """
    forms = {}
    for name, model in (("dense", dense), ("block_sparse", sparse)):
        plain = _Form(model, given, CONTIGUOUS)
        if not any(type(module) in CONVOLUTIONS[1:] for module in dense.modules()):
            forms[name] = plain
            continue
        converted = copy.deepcopy(model)
        converted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = _Form(converted, given.channels_last(), CHANNELS_LAST)
        times = _times({CONTIGUOUS: plain.run, CHANNELS_LAST: last.run}, seconds, given)
        forms[name] = min((plain, last), key=lambda form: times[form.memory_format].median)
    return forms


def _inputs_of_layers(form: _Form, names: Sequence[str], keep: bool) -> dict[str, Tensor]:
    """What each of these layers is given in this form of the model; without `keep` only shapes count."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].clone() if keep else given[0].to("meta")

        return note

    handles = [form.model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        form.run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _bench_layers(forms: _Forms, given: Given, settings: Settings) -> list[LayerResult]:
    """One result for each kind of layer, in the model's order."""
    replaced = block_sparse_layers(forms["block_sparse"].model)
    shapes = _inputs_of_layers(forms["dense"], list(replaced), keep=False)
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, layer in replaced.items():
        if name in shapes:  # a layer may not be used at all
            kept = round(_kept(layer) / layer.grid.count, 2)
            geometry = layer.geometry if isinstance(layer, BlockSparseConv) else None
            groups.setdefault((layer.grid, geometry, kept, layer.bias is None, shapes[name].shape), []).append(name)
    firsts = [names[0] for names in groups.values()]
    seen = {form: _inputs_of_layers(forms[form], firsts, keep=True) for form in forms}
    results = []
    for names in groups.values():
        name, layer = names[0], replaced[names[0]]
        # Each with the very input that it gets in its form of the model: convolutions mind how it lies in memory.
        of_dense, of_sparse = seen["dense"].pop(name), seen["block_sparse"].pop(name)
        linear = forms["dense"].model.get_submodule(name)
        _check_outputs(linear(of_dense), layer(of_dense), name)
        y = layer(of_sparse)
        runs = {"dense": lambda: linear(of_dense), "block_sparse": lambda: layer(of_sparse)}  # noqa: B023
        times = _pair(runs, settings.seconds / 10, given)
        choice = _choice(layer, of_sparse, y)
        results.append(
            LayerResult(
                names=tuple(names),
                kind="conv" if isinstance(layer, BlockSparseConv) else "linear",
                matrix=layer.grid.matrix,
                block=layer.grid.block,
                blocks=layer.grid.count,
                kept_blocks=_kept(layer),
                batch_size=given.batch_size,
                sequence_length=given.sequence_length,
                rows=_rows(layer, y),
                way=choice.way,
                reason=choice.reason,
                times=times,
            )
        )
    return results


def _kept(layer: BlockSparse) -> int:
    return len(layer.matrix.col if isinstance(layer, BlockSparseConv) else layer.col)


def _rows(layer: BlockSparse, y: Tensor) -> int:
    return y.numel() // layer.grid.matrix[0]


def _choice(layer: BlockSparse, x: Tensor, y: Tensor) -> Choice | ConvChoice:
    """What the layer took for x."""
    rows = _rows(layer, y)
    if isinstance(layer, BlockSparseLinear):
        return next(choice for choice in reversed(layer.choices) if choice.bucket == bucket_of(rows))
    key = conv_bucket_of(rows), is_channels_last(x)
    return next(choice for choice in reversed(layer.choices) if (choice.bucket, choice.channels_last) == key)


def _bench_model(forms: _Forms, given: Given, settings: Settings) -> ModelResult:
    dense, sparse = forms["dense"], forms["block_sparse"]
    difference = _check_outputs(main_output(dense.run()), main_output(sparse.run()), "the model")
    return ModelResult(
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        inputs=given.shapes,
        memory_formats={name: form.memory_format for name, form in forms.items()},
        difference=difference,
        tolerance=TOLERANCES[torch.bfloat16 if settings.bf16 else torch.float32],
        times=_pair({name: form.run for name, form in forms.items()}, settings.seconds, given),
    )


def _pair(runs: Mapping[str, Callable[[], Any]], seconds: float, given: Given) -> Pair:
    timings = _times(runs, seconds, given)
    return Pair(timings["dense"], timings["block_sparse"])


def _times(runs: Mapping[str, Callable[[], Any]], seconds: float, given: Given) -> dict[str, Timing]:
    some = next(iter((*given.positional, *given.named.values())))
    return time_in_turns(runs, budget=seconds, sample=2e-3, finish=lambda: wait_for(some))


def main_output(output: Any) -> Tensor:
    """Logits, or whatever tensor of floats comes first in what a model returns."""
    found = next(_floats(output), None)
    if found is None:
        raise UsageError(
            f"the model returns a {type(output).__name__} with no floating tensor in it: nothing to compare"
        )
    return found


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _floats(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _floats(part)


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
