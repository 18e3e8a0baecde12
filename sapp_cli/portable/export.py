"""`sapp export --format onnx`: a pruned model as one ONNX file that any runtime loads.

checkpoint → the model, its pruned layers block-sparse → each in the form that pays → graph → file → held against the model
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sapp_cli._version import __version__
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.write import disk_errors, space_errors, sync_folder
from sapp_cli.inputs.models import LoadedModel, load_model, require_whole
from sapp_cli.portable.choice import Candidate, Form, choose_forms
from sapp_cli.portable.graph import make_graph, save_graph
from sapp_cli.portable.place import check_place, require_exporter, weights_file
from sapp_cli.portable.runtimes import Array, Runtime, Session, require_runtime
from sapp_cli.portable.signature import Signature, signature_of, signature_of_own
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime.bench_layers import block_sparse_layers
from sapp_cli.runtime.example_inputs import BenchInputs, example_inputs
from sapp_cli.runtime.load import load_and_explain

TOLERANCE = 1e-4
"""Most that outputs of the file and of the model may differ, as a share of the largest output, or of 1 if that is larger."""
LENGTH = 128
"""Tokens that layers are measured with, where the model takes as many."""


@dataclass(frozen=True)
class OnnxResult:
    """What was written, and what was seen of it."""

    files: tuple[Path, ...]
    model: str
    opset: int
    signature: Signature
    forms: tuple[Form, ...]
    left: dict[str, str]  # name of a pruned layer -> why it stays as it was
    runtime: Runtime | None  # that forms were measured in
    checked_in: str
    difference: float  # largest, as a share of the largest output

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The document of `export --format onnx --json`."""
        return {
            "files": {str(file): file.stat().st_size for file in self.files},
            "model": self.model,
            "opset": self.opset,
            "inputs": [given.text for given in self.signature.inputs],
            "outputs": list(self.signature.outputs),
            "measured_in": None if self.runtime is None else self.runtime.described,
            "layers": [form.as_json() for form in self.forms],
            "left_dense": self.left,
            "checked_in": self.checked_in,
            "largest_difference": self.difference,
        }


@dataclass(frozen=True)
class OwnModel:
    """A model that the user's recipe builds, and rows of its data."""

    loaded: LoadedModel
    inputs: BenchInputs


def export_onnx(
    path: Path,
    out: Path,
    *,
    opset: int,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    own: Callable[[], OwnModel] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], None] = lambda line: None,
) -> OnnxResult:
    """Write the model at `path` to the file `out` in standard ONNX operators, in float32.

    A pruned layer stands in it as blocks where these are faster than the dense layer: in `runtime`, or the installed one,
    measured with one thread and one example; by a rule where none is installed. `own` gives a model that its folder does
    not describe.

    The file is there whole or not at all, is checked by `onnx.checker`, and its outputs are compared with those of the dense
    model for two batches of different sizes. Raises UsageError where the place, a package, the operator set or the model
    does not fit.
    """
    check_place(out, overwrite)
    require_exporter(opset)
    measuring = require_runtime(runtime)
    checkpoint = open_checkpoint(path)
    checkpoint.require_weights()
    user = None if own is None else own()
    loaded = user.loaded if user is not None else load_model(checkpoint, ModelSection())
    require_whole(loaded, path)
    model = loaded.model.float().eval()
    with torch.no_grad():
        signature = _signature(model, user)
        expected = [signature.module(*signature.example(number)) for number in signature.examples]
        if measuring is None:
            say(
                "no runtime is installed to measure in, so a rule decides which layers become blocks; "
                "pip install 'sapp-cli[onnxruntime]' to measure"
            )
        forms, left = _replace(model, path, signature, measuring, progress)
    if not forms and not left:
        say(f"{path}: no layer is block-sparse; the file holds the dense model")
    program = make_graph(signature, opset)
    program.model.metadata_props["sapp"] = __version__
    program.model.metadata_props["sapp_layers"] = json.dumps({form.name: form.as_json() for form in forms})
    with _beside(out) as folder:
        files = save_graph(program, folder / out.name)
        del program
        checked_in, difference = _check(folder / out.name, signature, expected, measuring)
        written = _put(files, out)
    return OnnxResult(
        written, loaded.description, opset, signature, tuple(forms), left, measuring, checked_in, difference
    )


def _signature(model: nn.Module, user: OwnModel | None) -> Signature:
    if user is None or getattr(model, "main_input_name", None):
        return signature_of(model)
    return signature_of_own(model, list(user.inputs.given(model)))


def _replace(
    model: nn.Module, path: Path, signature: Signature, runtime: Runtime | None, say: Callable[[str], None]
) -> tuple[list[Form], dict[str, str]]:
    """Put each pruned layer into its form, in the model itself; what stays as it was, and why."""
    dense = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        left = load_and_explain(model, path)
    layers = block_sparse_layers(model)
    for name in layers:  # as the model was: what layers are given does not depend on their form
        model.set_submodule(name, dense[name])
    seen = _inputs(model, list(layers), signature)
    candidates = [Candidate.of(name, dense[name], layer, seen.pop(name, None)) for name, layer in layers.items()]
    forms = choose_forms(candidates, runtime)
    for form in forms:
        model.set_submodule(form.name, form.module)
        say(f"{form.name}: {_chosen(form)}")
    return forms, left


def _chosen(form: Form) -> str:
    seconds = form.seconds or {}
    times = ", ".join(f"{name} {1e6 * value:,.0f} µs" for name, value in seconds.items())
    text = "dense" if form.is_dense else f"{form.kept:,} of {form.blocks:,} blocks in {form.groups} groups of rows"
    return f"{text} ({times})" if times else text


def _inputs(model: nn.Module, names: Sequence[str], signature: Signature) -> dict[str, Tensor]:
    """What each layer is given when the model sees one example, of `LENGTH` tokens if it reads text."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, given[0].clone())

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        if getattr(model, "main_input_name", None):
            longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or LENGTH
            model(**example_inputs(model, 1, min(LENGTH, longest)))
        else:
            signature.module(*(tensor[:1] for tensor in signature.example(0)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _check(
    file: Path, signature: Signature, expected: Sequence[Sequence[Tensor]], runtime: Runtime | None
) -> tuple[str, float]:
    """(who computed, largest difference to what the dense model gave). An impossible difference is a bug of sapp."""
    import onnx

    onnx.checker.check_model(str(file))
    names = [given.name for given in signature.inputs]
    run, who = (
        (_reference(file, names), "onnx's own interpreter")
        if runtime is None
        else (
            runtime.open(file, names),
            runtime.described,
        )
    )
    largest = 0.0
    for number in signature.examples:
        outputs = run([tensor.numpy() for tensor in signature.example(number)])
        for name, wanted, found in zip(signature.outputs, expected[number], outputs, strict=True):
            difference = _difference(wanted.numpy(), found)
            assert difference <= TOLERANCE, (
                f"'{name}' of the ONNX file differs from the model's by {difference:.1e} of the largest output in {who}; "
                f"{TOLERANCE:.0e} is allowed. Nothing was written"
            )
            largest = max(largest, difference)
    return who, largest


def _difference(wanted: Array, found: Array) -> float:
    assert wanted.shape == found.shape, f"an output of {found.shape}, expected {wanted.shape}"
    if not wanted.size or np.array_equal(wanted, found, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    scale = max(1.0, float(np.abs(wanted).max()))
    return float(np.abs(wanted.astype(np.float64) - found).max()) / scale


def _reference(file: Path, names: Sequence[str]) -> Session:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(file))
    return lambda given: list(evaluator.run(None, dict(zip(names, given, strict=True))))


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder on the disk of `out`, gone at the end."""
    parent = out.absolute().parent
    with disk_errors(parent), space_errors(parent):
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.sapp-new-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _put(files: Sequence[Path], out: Path) -> tuple[Path, ...]:
    """The weights first, so that a file with the model's name is always whole."""
    placed = []
    for file in sorted(files, key=lambda file: file.name == out.name):
        target = out.parent / file.name
        file.replace(target)
        placed.append(target)
    if weights_file(out) not in placed:  # of the file that was there
        weights_file(out).unlink(missing_ok=True)
    sync_folder(out.absolute().parent)
    return tuple(reversed(placed))
