"""Where an ONNX file goes and what it takes to write one: asked before torch is imported."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from sapp_cli.checkpoint.given_file import FileKind, check_given, head
from sapp_cli.checkpoint.write import require_folder
from sapp_cli.errors import UsageError

PRODUCER = "sapp"
OLDEST_OPSET, NEWEST_OPSET = 18, 23
"""What torch's exporter writes, and takes a graph up to; it takes none down."""
ONNX_FILE = FileKind("an ONNX file of sapp", lambda path: b"\x12\x04" + PRODUCER.encode() in head(path)[:32])
"""Its second field is the producer's name."""


def weights_file(out: Path) -> Path:
    """Where the weights of a file lie that would pass 2 GB with them."""
    return out.with_name(f"{out.name}.data")


def check_place(out: Path, overwrite: bool) -> None:
    """Raise UsageError if the file cannot be written there, or something is lost by it."""
    require_folder(out)
    if os.path.lexists(out):
        if not overwrite:
            raise UsageError(f"{out}: exists already; give another name, or replace it with --overwrite")
        check_given(out, ONNX_FILE)
    elif os.path.lexists(weights_file(out)):
        raise UsageError(
            f"{weights_file(out)}: exists already, and there the weights of a large model go; give another name"
        )


def require_exporter(opset: int) -> None:
    """Raise UsageError where the packages that write ONNX are missing, or the operator set is none that they write."""
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise UsageError(f"--format onnx needs the package {missing[0]}: pip install 'sapp-cli[onnx]'")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UsageError(
            f"--opset {opset}: sapp writes the operator sets {OLDEST_OPSET} to {NEWEST_OPSET}; leave it out for 20"
        )
