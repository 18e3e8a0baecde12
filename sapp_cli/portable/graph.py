"""A model as an ONNX graph: made by torch's exporter, named, and held against the model."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sapp_cli._version import __version__
from sapp_cli.errors import UsageError
from sapp_cli.portable.place import PRODUCER
from sapp_cli.portable.signature import Signature

MOST_BYTES = 1_900_000_000
"""Of the weights in the file itself: protobuf reads 2 GB at most, with all that stands beside them."""


def make_graph(signature: Signature, opset: int) -> Any:
    """The `torch.onnx.ONNXProgram` of the model. Raises UsageError where torch cannot record it or has no such operator."""
    with _silence(), torch.no_grad():
        recorded = _recorded(signature)
        try:
            program = torch.onnx.export(
                recorded,
                dynamo=True,
                opset_version=opset,
                input_names=[given.name for given in signature.inputs],
                output_names=list(signature.outputs),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UsageError(_not_exportable(recorded, error)) from error
    assert program is not None, "dynamo=True gives a program"
    program.model.producer_name = PRODUCER
    program.model.producer_version = __version__
    return program


def parts_of_graph(program: Any) -> list[bytes]:
    """A graph of its own for each output, with what it depends on: how layers of one graph are measured apart."""
    import onnx

    whole = program.model_proto
    makers = {name: place for place, node in enumerate(whole.graph.node) for name in node.output}
    constants = {tensor.name: tensor for tensor in whole.graph.initializer}
    parts = []
    for output in whole.graph.output:
        wanted, seen, nodes = [output.name], set(), set()
        while wanted:
            name = wanted.pop()
            if name not in seen and name in makers:
                nodes.add(makers[name])
                wanted += whole.graph.node[makers[name]].input
            seen.add(name)
        part = onnx.helper.make_graph(
            [whole.graph.node[place] for place in sorted(nodes)],
            output.name,
            [given for given in whole.graph.input if given.name in seen],
            [output],
            [constants[name] for name in sorted(seen & constants.keys())],
        )
        model = onnx.helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)
        parts.append(model.SerializeToString())
    return parts


def save_graph(program: Any, path: Path) -> list[Path]:
    """Write it; the weights go into a second file where they would pass the 2 GB of one. All files that were written."""
    size = sum(constant.const_value.nbytes for constant in program.model.graph.initializers.values())
    with _silence():
        program.save(path, external_data=size > MOST_BYTES)
    return sorted(path.parent.glob(f"{path.name}*"))


def _recorded(signature: Signature) -> torch.export.ExportedProgram:
    shapes = tuple(
        dict.fromkeys(given.axes, torch.export.Dim.DYNAMIC)  # what of it is equal, torch finds out
        for given in signature.inputs
    )
    try:
        return torch.export.export(
            signature.module,
            signature.example(0),
            dynamic_shapes=(shapes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except Exception as error:  # whatever a model's code and torch's recorder raise
        raise UsageError(
            f"{_class(signature.module)}: torch.export cannot record this model: {_first_line(error)}; "
            "the forward pass must not depend on the values of tensors"
        ) from error


def _not_exportable(recorded: torch.export.ExportedProgram, error: BaseException) -> str:
    """With the operator and the layer that asks for it, where the error says which."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(causes)
    found = re.search(r"OpOverload\(op='([^']+)'", text) or re.search(r"No ONNX function found for <?([\w.:]+)", text)
    if found is None:
        return f"torch's ONNX exporter cannot write this model: {_first_line(error)}"
    operator = found[1]
    layer = _layer_of(recorded, operator)
    where = f" of the layer '{layer}'" if layer else ""
    return f"the operator {operator}{where} has no form in ONNX; compute it in other operators of torch, or keep to sapp.load"


def _layer_of(recorded: torch.export.ExportedProgram, operator: str) -> str | None:
    """The innermost module that calls this operator."""
    for node in recorded.graph.nodes:
        target = str(node.target).replace("::", ".")
        if node.op == "call_function" and operator.replace("::", ".") in (target, target.rpartition(".")[0]):
            modules = list(node.meta.get("nn_module_stack", {}).values())
            if modules:
                return str(modules[-1][0]).removeprefix("model.")
    return None


def _class(module: nn.Module) -> str:
    return type(module.model).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;:")


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's advice to its own developers."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
