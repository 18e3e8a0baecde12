"""Safetensors files by NumPy alone: a header that is believed only after every number in it was checked.

8 bytes           length of the header, little-endian
header            JSON: name -> {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__" -> {text: text}
the rest          the tensors' bytes, without holes or overlaps; data_offsets count from here
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.damage import AGAIN, FETCH, POINTER, absence, damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES, PACKED
from sapp_cli.checkpoint.foreign import of_another_format
from sapp_cli.checkpoint.json_text import parse_object
from sapp_cli.checkpoint.tensor_file import FileIdentity, Read, TensorFile, TensorInfo

HEADER_LIMIT = 100_000_000  # the format's own
MAX_AXES = 32  # NumPy 1's
MAX_BYTES = 2**63 - 1


class SafetensorsFile(TensorFile):
    """A safetensors file whose whole header was checked: `.tensors` in the header's order, `.metadata`, the bytes.

    The file is opened for each tensor and closed after it, so nothing is left to close. Raises CheckpointError, with
    file and tensor, for whatever is not a whole and sound safetensors file, and when its bytes cannot be read later on.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        text, data_start, self.identity = _read_header(self.path)
        header = parse_object(text, self.path, "the header")
        self.metadata = _checked_metadata(header.pop("__metadata__", None), self.path)
        self.tensors = {name: _checked_entry(name, entry, data_start, self.path) for name, entry in header.items()}
        _check_coverage(self.tensors, data_start, self.identity.size, self.path)

    @contextmanager
    def reading(self, name: str) -> Iterator[Read]:
        info = self.info(name)

        def read(offset: int, buffer: npt.NDArray[np.uint8]) -> None:
            assert 0 <= offset <= info.nbytes - buffer.nbytes, f"{name}: a read outside the tensor"
            view = buffer.data
            try:
                file.seek(info.start + offset)
                while view.nbytes:
                    count = file.readinto(view)
                    if not count:
                        raise damaged(self.path, "the file became shorter while it was read", name)
                    view = view[count:]
            except OSError as error:
                raise damaged(self.path, f"cannot be read: {error.strerror}", name) from None

        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise damaged(self.path, f"cannot be read: {error.strerror}", name) from None
        with file:
            self.require_unchanged(os.fstat(file.fileno()))
            yield read


def _read_header(path: Path) -> tuple[bytes, int, FileIdentity]:
    """(the header's text, where the data begins, which file it is)."""
    try:
        if not path.is_file():  # a pipe would block for ever
            raise damaged(path, absence(path))
        with path.open("rb") as file:
            identity = FileIdentity.of(os.fstat(file.fileno()))
            size = identity.size
            start = file.read(8)
            if len(start) < 8:
                raise damaged(path, f"is not a safetensors file: it has {size} bytes; {AGAIN}")
            if start + file.read(len(POINTER) - 8) == POINTER:
                raise damaged(path, FETCH)
            length = int.from_bytes(start, "little")
            foreign = of_another_format(path, content=True)
            if foreign is not None:
                raise foreign
            if length > HEADER_LIMIT:
                problem = f"a header of {length:,} bytes, more than the format allows"
                raise damaged(path, f"is not a safetensors file: {problem}; {AGAIN}")
            if length > size - 8:
                raise damaged(path, f"truncated: the header has {length:,} bytes, the file {size:,}; {AGAIN}")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None
    if len(text) < length:
        raise damaged(path, "the file became shorter while it was read")
    if not text.startswith(b"{"):
        raise damaged(path, f"is not a safetensors file: its header does not begin with '{{'; {AGAIN}")
    return text, 8 + length, identity


def _checked_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "__metadata__ in the header is not an object of texts")
    return metadata


def _checked_entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    """The tensor's place, after everything that one entry alone can get wrong was checked."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, "its entry in the header is not {dtype, shape, data_offsets}", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and dtype in PACKED:
        raise damaged(
            path, f"quantized weights ({dtype}) are not supported; start from the unquantized checkpoint", name
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise damaged(path, f"unknown dtype {quoted(dtype)}", name)
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise damaged(path, f"its shape is not a list of at most {MAX_AXES} natural numbers", name)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, "its data_offsets are not a start and an end", name)
    itemsize = DTYPES[dtype].itemsize
    # The extent without its zero axes is bounded too: NumPy refuses an empty array of shape (0, 2**62, 2**62).
    if math.prod(axis for axis in shape if axis) * itemsize > MAX_BYTES:
        raise damaged(path, f"its shape {_shape(shape)} is larger than any file", name)
    start, end = offsets
    if math.prod(shape) * itemsize != end - start:
        expected = math.prod(shape) * itemsize
        raise damaged(
            path, f"{_shape(shape)} of {dtype} needs {expected:,} bytes, its data_offsets span {end - start:,}", name
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def _check_coverage(tensors: dict[str, TensorInfo], data_start: int, size: int, path: Path) -> None:
    """The tensors follow each other from the header to the end of the file: no overlap, no hole, nothing outside."""
    reached = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.end > size:
            missing = info.end - size
            raise damaged(path, f"truncated: it ends {missing:,} bytes behind the end of the file; {AGAIN}", info.name)
        if info.start != reached:
            problem = "overlaps the tensor before it" if info.start < reached else "leaves a hole before it"
            raise damaged(path, f"{problem} in the file", info.name)
        reached = info.end
    if reached != size:
        raise damaged(path, f"{size - reached:,} bytes at the end of the file belong to no tensor; {AGAIN}")


def _naturals(values: Any) -> bool:
    """A list of integers from 0 to 2**63 − 1."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_BYTES for value in values)


def _shape(shape: list[int]) -> str:
    return quoted(tuple(shape))
