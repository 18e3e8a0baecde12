"""Damages valid checkpoints in thousands of ways and reads each as `sapp report` and `sapp export` would.

    python scripts/fuzz_checkpoint.py --mutations 10000
    python scripts/fuzz_checkpoint.py --seed 7 --only 1234      # one of them again

Whatever is wrong with a file must end in a SappError that names it. Everything else ends the run with the number of the
mutation: any other exception, a read of a file outside the folder, a write, a process or a connection, more than 20
seconds or more than 2 GiB. What is accepted must be accepted by the safetensors library as well, with the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import torch

from sapp_cli.checkpoint.block_sparse import gather, kept_blocks, to_matrix
from sapp_cli.checkpoint.block_sparse_file import block_sparse_metadata, block_sparse_out
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.checkpoint.write import ShardOut, TensorOut, write_safetensors, write_sharded
from sapp_cli.errors import SappError
from sapp_cli.grid import BlockGrid, MatrixLayout

Files: TypeAlias = dict[str, bytes]
"""A checkpoint: file name -> content."""
SECONDS = 20
MEMORY = 2 << 30
NUMBERS = (-1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
VALUES = (
    *NUMBERS, 0.5, -0.0, 1e400, True, None, "", "F32", "F4", "BF16", "I32", "C64", "1", "linear", "conv", "transposed",
    "../outside.safetensors", "/etc/passwd", "a.safetensors", "\ud800", "x" * 300, [], {}, [[]], {"a": {}}, [1, 1], [0, 0],
)  # fmt: skip


# --- the valid ones


def specimens(folder: Path) -> dict[str, Files]:
    """One small checkpoint of every kind."""
    rng = np.random.default_rng(0)
    plain = [
        _out("a.weight", "F32", rng.standard_normal((7, 5), np.float32)),
        _out("b.weight", "BF16", rng.integers(0, 2**16, (3, 4)).astype(np.uint16)),
        _out("c", "I64", np.arange(3)),
        _out("d", "BOOL", np.array(True)),
        _out("e", "F8_E4M3", np.arange(256, dtype=np.uint8)),
        _out("f", "F16", np.zeros((0, 3), np.float16)),
    ]
    write_safetensors(folder / "model.safetensors", plain, {"format": "pt"})
    found = {"plain": _take(folder)}

    sparse, blocks = _sparse_tensors(rng)
    write_safetensors(
        folder / "model.safetensors", [*sparse, *plain], block_sparse_metadata(blocks, {"tied": "conv", "too": "c"})
    )
    found["block-sparse"] = _take(folder)

    shards = [
        ShardOut("model-00001-of-00002.safetensors", sparse, block_sparse_metadata(blocks, {})),
        ShardOut("model-00002-of-00002.safetensors", plain, block_sparse_metadata({}, {"tied": "c"})),
    ]
    write_sharded(folder, "model", shards, {})
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 4}')
    found["sharded"] = _take(folder)

    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "tied": weight, "b": torch.ones(2, dtype=torch.bfloat16), "steps": 3}
    for name, zipped in (("zipped", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=zipped)
        found[name] = {"model.pt": buffer.getvalue()}
    return found


def _out(name: str, dtype: str, array: np.ndarray) -> TensorOut:
    return TensorOut(name, dtype, array.shape, lambda: array)


def _sparse_tensors(rng: np.random.Generator) -> tuple[list[TensorOut], dict[str, tuple[MatrixLayout, BlockGrid]]]:
    layouts = {
        "linear": MatrixLayout("linear", (9, 7)),
        "gpt.c_fc": MatrixLayout("transposed", (6, 8)),
        "conv": MatrixLayout("conv", (5, 2, 3)),
        "none": MatrixLayout("linear", (4, 4)),
    }
    tensors: list[TensorOut] = []
    blocks = {}
    for name, layout in layouts.items():
        grid = BlockGrid(layout.matrix, (2, 3))
        array = np.where(rng.random(layout.shape) < (0 if name == "none" else 0.2), 1, 0).astype(np.float32)
        matrix = to_matrix(array, layout)
        kept = kept_blocks(matrix, grid, DTYPES["F32"])
        tensors += block_sparse_out(name, "F32", grid, kept, partial(gather, matrix, grid, kept))
        blocks[name] = layout, grid
    return tensors, blocks


def _take(folder: Path) -> Files:
    """The files of the folder, which is empty afterwards."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in files:
        (folder / name).unlink()
    return files


# --- the damage


def mutate(files: Files, others: Sequence[Files], rng: random.Random) -> Files:
    """The checkpoint, damaged in one to three places."""
    files = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(files))
        kind = rng.random()
        if kind < 0.03 and len(files) > 1:
            del files[name]
        elif kind < 0.06:
            other = rng.choice(others)
            files[name] = other[rng.choice(sorted(other))]
        elif kind < 0.08:
            files[f"{rng.randrange(3)}{Path(name).suffix}"] = files[name]
        elif kind < 0.5 and name.endswith(".safetensors"):
            files[name] = _damage_header(files[name], rng)
        elif kind < 0.8 and name.endswith(".json"):
            files[name] = _damage_json(files[name], rng)
        else:
            files[name] = rng.choice(BYTES)(files[name], rng)
    return files


def _damage_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with something else in its header, which is well-formed otherwise."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if length > len(content) or not header.startswith(b"{"):
        return content
    try:
        about = json.loads(header)
        metadata = about.get("__metadata__", {})
        inner = [key for key in ("sapp_bsr", "sapp_tied") if key in metadata]
        if inner and rng.random() < 0.6:
            key = rng.choice(inner)
            metadata[key] = _damage_json(metadata[key].encode(), rng).decode(errors="replace")
            header = json.dumps(about).encode()
        else:
            header = _damage_json(header, rng)
    except (ValueError, AttributeError, RecursionError, KeyError, TypeError):
        return content  # damaged before
    return len(header).to_bytes(8, "little") + header + data


def _damage_json(text: bytes, rng: random.Random) -> bytes:
    """JSON with one value replaced, removed, named otherwise, named twice or nested without end."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text
    places = list(_places(root))
    if not places:
        return text
    parent, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        parent[key] = rng.choice(VALUES)
    elif kind < 0.7:
        del parent[key]
    elif kind < 0.8 and isinstance(parent, dict):
        parent[rng.choice(("a.weight", "__metadata__", "linear", "", "\x1b[31m"))] = parent.pop(key)
    else:
        parent[key] = "@@"
        inner = rng.choice((b"[" * 100_000, b'{"a":' * 70 + b"0" + b"}" * 70, b"9" * 5000, b"NaN", b'1,"a.weight":1'))
        return json.dumps(root).encode().replace(b'"@@"', inner)
    return json.dumps(root).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _flip(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    """Some bytes, or the end with all its indices, as an extreme number."""
    place = rng.randrange(len(content) + 1)
    number = rng.choice((0, -1, 1, 5, 2**31 - 1, -(2**31))).to_bytes(4, "little", signed=True)
    place -= place % 4
    return content[:place] + number + content[place + 4 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 4, 8, 64)) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.choice((1, 4, 8, 64))) + content[start:]


def _length(content: bytes, rng: random.Random) -> bytes:
    """A header length that lies."""
    true = int.from_bytes(content[:8], "little")
    lies = (0, 1, true - 1, true + 1, true + 8, len(content) - 8, len(content), 10**8, 10**8 + 1, 2**63, 2**64 - 1)
    return (rng.choice(lies) % 2**64).to_bytes(8, "little") + content[8:]


BYTES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _remove,
    _insert,
    _length,
)


# --- the reading


def read_everything(folder: Path) -> Checkpoint:
    """All tensors and weights of the checkpoint, in every way there is to read them."""
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.tensors:
        array = checkpoint.array(name)
        assert array.nbytes == checkpoint.raw(name).nbytes == sum(rows.nbytes for _, rows in checkpoint.slabs(name, 64))
    for name in (*checkpoint.dense_names(), *checkpoint.tied):
        shape = checkpoint.shape(name)
        assert checkpoint.dense_array(name).shape == shape
        stored = checkpoint.tied.get(name, name)
        if stored in checkpoint.block_sparse:
            checkpoint.matrix(name)
            layout = checkpoint.block_sparse[stored].layout
        elif len(shape) >= 2:
            layout = MatrixLayout("linear" if len(shape) == 2 else "conv", shape)
        else:
            continue
        for block in ((2, 3), (16, 16)):
            block_statistics(checkpoint, name, layout, BlockGrid(layout.matrix, block))
        checkpoint.dense_float32(name)
    return checkpoint


def check_with_library(checkpoint: Checkpoint) -> None:
    """The safetensors library accepts what sapp accepts, and gives the same bytes."""
    for file in checkpoint.files:
        if file.path.suffix == ".safetensors":
            theirs = dict(safetensors.deserialize(file.path.read_bytes()))
            assert set(theirs) == set(file.tensors), "other names than the safetensors library"
            for name, about in theirs.items():
                assert about["data"] == file.raw(name).tobytes(), f"{name}: other bytes than the safetensors library"


class Guard:
    """Watches what Python does while it is given a folder: every file must be in there and only be read."""

    FORBIDDEN = (
        *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "ctypes.dlopen"),
        *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
    )

    def __init__(self) -> None:
        self.folder: Path | None = None
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        try:
            yield
        finally:
            self.folder = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder, self.folder = self.folder, None  # what is done in here is not watched
        if folder is None:
            return
        if event.startswith(self.FORBIDDEN) or (event == "open" and not _only_reads(folder, *arguments)):
            raise Forbidden(f"{event} {arguments}")
        self.folder = folder


def _only_reads(folder: Path, path: Any, mode: Any, flags: Any) -> bool:
    """True if a file is opened for reading, and is in the folder or code of a library."""
    if not isinstance(path, str | bytes):
        return True  # a file that is open already
    file = Path(path if isinstance(path, str) else path.decode(errors="replace")).resolve()
    library = file.is_relative_to(sys.prefix) or file.is_relative_to(sys.base_prefix)
    allowed = file.is_relative_to(folder) or (library and file.suffix in {".py", ".pyc", ".so"})
    return allowed and not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))


class Forbidden(BaseException):
    """Reading a checkpoint did something that reading never does."""


class TooSlow(BaseException):
    """Reading a checkpoint took more than SECONDS."""


def run(mutations: Sequence[int], seed: int, base: Path) -> Counter[str]:
    """What became of each mutation: "accepted", or the class of its error. Raises AssertionError for the first failure."""
    guard = Guard()
    folder = base.resolve() / "checkpoint"
    folder.mkdir()
    valid = specimens(folder)
    (base / "outside.safetensors").write_bytes(valid["plain"]["model.safetensors"])  # for indexes that point there
    for files in valid.values():  # everything that is imported late is imported now
        _write(folder, files)
        check_with_library(read_everything(folder))
        _take(folder)

    def too_slow(number: int, frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, too_slow)
    names = sorted(valid)
    tally: Counter[str] = Counter()
    try:
        for number in mutations:
            rng = random.Random(f"{seed}.{number}")
            name = names[number % len(names)]
            _write(folder, mutate(valid[name], list(valid.values()), rng))
            what = f"mutation {number} of seed {seed} ({name})"
            signal.alarm(SECONDS)
            try:
                with guard.watching(folder):
                    checkpoint = read_everything(folder)
                check_with_library(checkpoint)
                tally["accepted"] += 1
            except SappError as error:
                if str(folder) not in str(error) or not str(error).isprintable():
                    raise AssertionError(
                        f"{what}: no file is named, or what is not text is printed: {error!a}"
                    ) from None
                tally[type(error).__name__] += 1
            except (Exception, Forbidden, TooSlow) as error:
                traceback.print_exc()
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from None
            finally:
                signal.alarm(0)
            _take(folder)
    finally:
        signal.signal(signal.SIGALRM, before)
    return tally


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one mutation to be tried")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    base = Path(tempfile.mkdtemp(prefix="sapp-fuzz-"))
    numbers = range(arguments.mutations) if arguments.only is None else [arguments.only]
    start = time.perf_counter()
    try:
        tally = run(numbers, arguments.seed, base)
    except AssertionError as error:
        sys.exit(f"{error}\nits files are in {base / 'checkpoint'}")
    shutil.rmtree(base)
    counts = ", ".join(f"{count:,} {what}" for what, count in tally.most_common())
    print(f"{len(numbers):,} mutations of seed {arguments.seed} in {time.perf_counter() - start:.0f} s: {counts}")


def _address_space() -> int:
    """Bytes of address space in use now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
