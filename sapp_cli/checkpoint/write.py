"""Safetensors files written tensor by tensor: one of them in memory at a time, the file there whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.errors import ResourceError, UsageError

Buffer: TypeAlias = bytes | memoryview
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class TensorOut:
    """A tensor to be written. `data` is called once, when its turn comes, and gives its entries in storage dtype.

    It gives one array (of any contiguity), or arrays one after another that together hold the entries in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Bits | Iterable[Bits]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class ShardOut:
    """A file of several to be written."""

    file: str
    tensors: Sequence[TensorOut]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def write_safetensors(path: Path, tensors: Sequence[TensorOut], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file: the header in the order given, every tensor aligned to its own entries.

    Written under a hidden name beside its place, synced, then renamed: what stood there before stays until then, and
    for good if anything fails. Raises ResourceError where the folder cannot be written to or the disk is full.
    """
    # Wide dtypes first, as the safetensors library has it: every tensor can be used where it lies in a mapped file.
    placed = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    with replacing(path) as write:
        write(_header(tensors, placed, metadata))
        for tensor in placed:
            _write_tensor(write, tensor)


def write_sharded(folder: Path, stem: str, shards: Sequence[ShardOut], index_metadata: Mapping[str, Any]) -> list[Path]:
    """Write the shards into the folder, and `stem`.safetensors.index.json for more than one; all files in order."""
    for shard in shards:
        write_safetensors(folder / shard.file, shard.tensors, shard.metadata)
    files = [folder / shard.file for shard in shards]
    if len(shards) > 1:
        index = {
            "metadata": {**index_metadata, "total_size": sum(shard.nbytes for shard in shards)},
            "weight_map": {tensor.name: shard.file for shard in shards for tensor in shard.tensors},
        }
        files.append(folder / f"{stem}{INDEX_SUFFIX}")
        with replacing(files[-1]) as write:
            write(json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n")
    return files


def shard_by_size(sizes: Mapping[str, int], max_bytes: int | None, stem: str = "model") -> list[tuple[str, list[str]]]:
    """(file name, names) of shards of at most `max_bytes` each, out of name -> bytes, in order; None: one shard.

    What is larger than the limit has a shard of its own. The files are named as Hugging Face names them:
    model.safetensors, or model-00001-of-00003.safetensors.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if max_bytes is not None and shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return [(f"{stem}.safetensors", shards[0])]
    return [(f"{stem}-{i:05}-of-{len(shards):05}.safetensors", shard) for i, shard in enumerate(shards, 1)]


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500 MB", "4GiB" or "123456": decimal units and binary ones. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?", text.strip().upper(), re.ASCII)
    size = 0
    if match:
        number, unit, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))
    if size < 1:
        raise UsageError(f"'{text}' is no size; write it as 500MB, 5GB or 4GiB")
    return size


def require_folder(path: Path) -> None:
    """UsageError where the folder of a file to be written is not there: told before the work, not after it."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first, or give another place")


OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full; free some space, or give another folder",
    errno.EDQUOT: "the disk quota is used up; free some space, or give another folder",
    errno.EFBIG: "a file there may not become that large; raise the limit (ulimit -f), or give another folder",
}
"""What only writing ends in, with what to do."""


@contextmanager
def space_errors(folder: Path) -> Iterator[None]:
    """ResourceError where the disk of `folder` takes no more; every other OSError of the block passes as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        raise ResourceError(f"{folder}: {OUT_OF_SPACE[error.errno]}") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """ResourceError, with the folder and what to do, in place of an OSError of the writing inside."""
    advice = {
        **OUT_OF_SPACE,
        errno.EROFS: "the disk is mounted read-only; give another folder",
        errno.EACCES: "no permission to write there; give another folder",
        errno.EPERM: "no permission to write there; give another folder",
    }
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{folder}: {advice.get(error.errno or 0, error.strerror)}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Callable[[Buffer], None]]:
    """A `write` for a file that takes the place of `path` when the block ends, and vanishes if the block raises.

    An OSError of the file's own becomes a ResourceError; one that is raised inside the block passes as it is.
    """
    staged = path.with_name(f".{path.name}.sapp-new-{os.getpid()}")
    with disk_errors(path.parent):
        file = staged.open("wb")

    def write(data: Buffer) -> None:
        with disk_errors(path.parent):
            file.write(data)

    try:
        yield write
        with disk_errors(path.parent):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            staged.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # on success there is nothing left of either
            file.close()
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def synced_size(path: Path) -> int:
    """The size in bytes of a file that is there; that much of it survives a power failure. Raises ResourceError."""
    with disk_errors(path.parent), path.open("ab") as file:
        os.fsync(file.fileno())
        return file.tell()


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power failure, where the system offers that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _header(tensors: Sequence[TensorOut], placed: Sequence[TensorOut], metadata: Mapping[str, str] | None) -> bytes:
    names = {tensor.name for tensor in tensors}
    assert len(names) == len(tensors), "a tensor is written twice"
    assert "__metadata__" not in names, "the format reserves this name"
    offsets: dict[str, list[int]] = {}
    reached = 0
    for tensor in placed:
        offsets[tensor.name] = [reached, reached := reached + tensor.nbytes]
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for tensor in tensors:
        place = offsets[tensor.name]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(write: Callable[[Buffer], None], tensor: TensorOut) -> None:
    """Write the tensor's entries, little-endian, holding its producer to the number of bytes it announced."""
    data = tensor.data()
    storage, written = DTYPES[tensor.dtype].storage, 0
    for part in [data] if isinstance(data, np.ndarray) else data:
        assert part.dtype == storage, f"{tensor.name}: {part.dtype} was given, {storage} announced"
        write(np.ascontiguousarray(part, storage).reshape(-1).view(np.uint8).data)
        written += part.nbytes
    assert written == tensor.nbytes, f"{tensor.name}: {written} bytes were given, {tensor.nbytes} announced"
