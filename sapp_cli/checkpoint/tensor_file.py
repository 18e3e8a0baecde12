"""What every file of tensors offers, whatever its format: names, dtypes and shapes at once, bytes on demand."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES, Bits, DType
from sapp_cli.checkpoint.output import sha256_file
from sapp_cli.errors import ResourceError

REPEAT = "put the first file back, or run the command again"
Read: TypeAlias = Callable[[int, npt.NDArray[np.uint8]], None]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place: `start` and `end` are byte offsets in the file (in the tensor's own bytes for a state dict)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def kind(self) -> DType:
        """The dtype with its storage dtype and conversions."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from one that took its place, and from itself once somebody wrote into it."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class TensorFile(ABC):
    """A file of tensors. Arrays are in storage dtypes: bfloat16 as uint16, 8-bit floats as uint8 (dtypes.py).

    It is read as it was when it was opened, or not at all: CheckpointError for one that was replaced or changed since.
    """

    path: Path
    identity: FileIdentity
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    tied: Mapping[str, str] = MappingProxyType({})
    """Alias -> the name that the file stores, where its format shares storage."""
    ignored: Mapping[str, str] = MappingProxyType({})
    """Entry that is not a tensor -> why it is left out."""
    note: str | None = None
    """What else lies in the file and is not read."""

    @abstractmethod
    def reading(self, name: str) -> AbstractContextManager[Read]:
        """A `read(offset, buffer)` that fills `buffer` with the tensor's bytes from its byte `offset` on.

        Both raise CheckpointError when the bytes cannot be read. A `read` belongs to one thread.
        """

    def require_unchanged(self, status: os.stat_result | None = None, sha256: str | None = None) -> None:
        """Raise CheckpointError if the file is another than the one that was opened.

        `status`: of the file once it is open. `sha256`: of the first file, by which a copy of it is known and taken for it.
        """
        try:
            found = FileIdentity.of(self.path.stat() if status is None else status)
            if found == self.identity:
                return
            if found.size == self.identity.size and sha256 is not None and sha256_file(self.path) == sha256:
                self.identity = found
                return
        except OSError as error:
            raise damaged(self.path, f"cannot be read: {error.strerror}") from None
        how = "became shorter" if found.size < self.identity.size else "was replaced or changed"
        raise damaged(self.path, f"{how} since it was opened; {REPEAT}")

    def sha256(self) -> str:
        """The file's SHA-256 in hexadecimal digits. Raises CheckpointError if it is not the file that was opened."""
        self.require_unchanged()
        digest = sha256_file(self.path)
        self.require_unchanged()
        return digest

    def info(self, name: str) -> TensorInfo:
        """Raises CheckpointError for a name that is not in the file."""
        try:
            return self.tensors[name]
        except KeyError:
            raise damaged(self.path, "no such tensor in this file", name) from None

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, (nbytes,)."""
        info = self.info(name)
        buffer = allocate(info.nbytes, self.path, name)
        with self.reading(name) as read:
            read(0, buffer)
        return buffer

    def array(self, name: str) -> Bits:
        """The tensor in its storage dtype and shape."""
        info = self.info(name)
        return self.raw(name).view(info.kind.storage).reshape(info.shape)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor's values as float32. Raises CheckpointError for complex numbers."""
        info = self.info(name)
        if info.kind.storage.kind == "c":
            raise damaged(self.path, f"complex numbers ({info.dtype}) are not supported", name)
        array = self.array(name)
        with memory_errors(self.path, name):
            return info.kind.to_float32(array)

    def slabs(self, name: str, max_bytes: int) -> Iterator[tuple[int, Bits]]:
        """(first row, rows in storage dtype) over the leading axis, at most `max_bytes` or one row at a time.

        Every slab lies in the same buffer: copy what must outlive the next one. A tensor without axes is one row.
        """
        info = self.info(name)
        rows, *rest = info.shape or (1,)
        row_bytes = math.prod(rest) * info.kind.itemsize
        if not rows or not row_bytes:
            return
        step = min(rows, max(1, max_bytes // row_bytes))
        buffer = allocate(step * row_bytes, self.path, name)
        with self.reading(name) as read:
            for row in range(0, rows, step):
                count = min(step, rows - row)
                part = buffer[: count * row_bytes]
                read(row * row_bytes, part)
                yield row, part.view(info.kind.storage).reshape(count, *rest)


def allocate(size: int, path: Path, name: str) -> npt.NDArray[np.uint8]:
    """An array of `size` bytes for a tensor; ResourceError if there is no such memory."""
    with memory_errors(path, name):
        return np.empty(size, np.uint8)


@contextmanager
def memory_errors(path: Path, name: str) -> Iterator[None]:
    """ResourceError, with file and tensor, in place of a MemoryError inside."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{path}: {quoted(name)}: does not fit into memory: {error}") from None
