"""The runtimes that an ONNX file can be measured and checked in, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapp_cli.errors import UsageError

Array: TypeAlias = NDArray[Any]
Session: TypeAlias = Callable[[Sequence[Array]], list[Array]]
"""Of the inputs in the graph's order, the outputs in the graph's order."""


class Runtime(str, Enum):
    """A runtime by the name of its package."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"

    @property
    def installed(self) -> bool:
        return find_spec(self.value) is not None

    @property
    def described(self) -> str:
        """As in "onnxruntime 1.32.0"."""
        with suppress(PackageNotFoundError):
            return f"{self.value} {version(self.value)}"
        return self.value

    def open(self, model: Path | bytes, inputs: Sequence[str], threads: int = 1) -> Session:
        """The model, ready to run on the CPU."""
        opened = _onnxruntime if self is Runtime.ONNXRUNTIME else _openvino
        return opened(model, inputs, threads)


def require_runtime(name: Runtime | None) -> Runtime | None:
    """That runtime, or ONNX Runtime or else OpenVINO if one is installed. Raises UsageError where the named one is not."""
    if name is None:
        return next((runtime for runtime in Runtime if runtime.installed), None)
    if not name.installed:
        raise UsageError(f"--runtime {name.value} needs its package: pip install 'sapp-cli[{name.value}]'")
    return name


def _onnxruntime(model: Path | bytes, inputs: Sequence[str], threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(given: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(inputs, given, strict=True))))

    return run


def _openvino(model: Path | bytes, inputs: Sequence[str], threads: int) -> Session:
    import openvino

    core = openvino.Core()
    read = core.read_model(str(model)) if isinstance(model, Path) else core.read_model(model=model)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would choose bfloat16 by itself where the CPU has it
    }
    compiled = core.compile_model(read, "CPU", settings)
    request = compiled.create_infer_request()

    def run(given: Sequence[Array]) -> list[Array]:
        results = request.infer(dict(zip(inputs, given, strict=True)))
        return [np.array(results[output]) for output in compiled.outputs]

    return run
