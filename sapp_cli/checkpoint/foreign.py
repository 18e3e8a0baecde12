"""Files of other formats, known by their suffix or first bytes: what each is, and the call that converts it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.errors import CheckpointError

TENSORFLOW = (
    "TensorFlow weights are not supported; with transformers 4 convert them: "
    "AutoModel.from_pretrained('{folder}', from_tf=True).save_pretrained('OUT')"
)
FLAX = TENSORFLOW.replace("TensorFlow", "Flax").replace("from_tf", "from_flax")
NUMPY = (
    "a NumPy archive is not supported; convert it: "
    "safetensors.numpy.save_file(dict(numpy.load('{path}')), 'model.safetensors')"
)
ONNX = (
    "an ONNX file is not supported; give the PyTorch checkpoint that it was exported from. For its tensors alone: "
    "safetensors.numpy.save_file({{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load('{path}').graph.initializer}}, "
    "'model.safetensors')"
)
GGUF = (
    "a GGUF file is not supported; convert it: transformers.AutoModelForCausalLM.from_pretrained('{folder}', "
    "gguf_file='{name}').save_pretrained('OUT')"
)
EXPORTED = (
    "an archive of torch.export is not supported; save its state dict: "
    "torch.save(torch.export.load('{path}').state_dict, 'weights.pt')"
)
SCRIPT = (
    "a TorchScript archive is not supported; save its state dict: "
    "torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')"
)
PYTORCH = "is a PyTorch file, not a safetensors file; rename it to .pt"
SAFETENSORS = "is a safetensors file, not a PyTorch file; rename it to .safetensors"
PAGE = "is a web page, not weights; download the file itself"

BY_SUFFIX = {
    ".gguf": GGUF,
    ".h5": TENSORFLOW,
    ".index": TENSORFLOW,
    ".keras": TENSORFLOW,
    ".msgpack": FLAX,
    ".npz": NUMPY,
    ".onnx": ONNX,
    ".pb": TENSORFLOW,
    ".pt2": EXPORTED,
    ".tflite": TENSORFLOW,
}
BEGINNINGS = {b"GGUF": GGUF, b"\x89HDF\r\n\x1a\n": TENSORFLOW, b"<!DOCTYPE": PAGE, b"<!doctype": PAGE, b"<html": PAGE}


def of_another_format(path: Path, content: bool = False) -> CheckpointError | None:
    """The error for a file of a format that sapp does not read, known by its name or by its `content`; None for others."""
    found = _by_content(path) if content else BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        return None
    return damaged(path, found.format(path=path, folder=path.parent, name=path.name))


def _by_content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return None  # its reader says why
    if start.startswith(b"PK\3\4"):
        return _archive(path)
    if path.suffix != ".safetensors" and start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < 2**32:
        return SAFETENSORS
    if start[:1] == b"\x08" and start[2:3] == b"\x12" and start[4:7].isalnum():  # ir_version, then producer_name
        return ONNX
    return next((text for beginning, text in BEGINNINGS.items() if start.startswith(beginning)), None)


def _archive(path: Path) -> str | None:
    """What a zip file holds; None for a state dict of PyTorch, and for a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if _any_ends(names, ("/constants.pkl",)):
        return SCRIPT
    if _any_ends(names, ("archive_format", "serialized_exported_program.json")):
        return EXPORTED
    if _any_ends(names, (".npy",)):
        return NUMPY
    if _any_ends(names, ("model.weights.h5",)):
        return TENSORFLOW
    return PYTORCH if path.suffix == ".safetensors" and _any_ends(names, ("data.pkl",)) else None


def _any_ends(names: Sequence[str], endings: tuple[str, ...]) -> bool:
    return any(name.endswith(endings) for name in names)
