"""Writing safetensors: files that every reader opens, and that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.checkpoint.safetensors import SafetensorsFile
from sapp_cli.checkpoint.write import (
    ShardOut,
    TensorOut,
    disk_errors,
    parse_size,
    shard_by_size,
    write_safetensors,
    write_sharded,
)
from sapp_cli.errors import ResourceError, UsageError
from tests.checkpoint.files import random_bits, same_bits, save


def test_every_dtype_through_the_library_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = {name: (name, random_bits(rng, name, (3, 5))) for name in DTYPES if name != "C64"}
    bits["scalar"] = ("F16", np.array(2.5, np.float16))
    bits["empty"] = ("F64", np.zeros((0, 7)))
    path = save(tmp_path / "all.safetensors", bits, {"format": "pt", "naïve": "→"})
    ours = SafetensorsFile(path)
    assert list(ours.tensors) == list(bits)
    assert ours.metadata == {"format": "pt", "naïve": "→"}
    for name, (_, array) in bits.items():
        assert same_bits(ours.array(name), array), name
    theirs = safetensors.torch.load_file(path)
    for name, (_, array) in bits.items():
        assert theirs[name].shape == array.shape
        assert theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes(), name


def test_numpy_opens_it(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"a": ("F16", np.arange(3, dtype="f2")), "b": ("I64", np.arange(2))})
    loaded = safetensors.numpy.load_file(path)
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"].tolist() == [0, 1]


def test_header_in_the_order_given_and_every_tensor_aligned(tmp_path: Path) -> None:
    tensors = {
        "bytes": ("U8", np.ones(3, np.uint8)),
        "halves": ("F16", np.ones(3, np.float16)),
        "doubles": ("F64", np.ones(1)),
        "floats": ("F32", np.ones(1, np.float32)),
    }
    path = save(tmp_path / "x.safetensors", tensors)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header) == ["bytes", "halves", "doubles", "floats"]
    for info in SafetensorsFile(path).tensors.values():
        assert info.start % info.kind.itemsize == 0


def test_tensors_are_made_one_at_a_time_and_in_parts(tmp_path: Path) -> None:
    alive: list[str] = []

    def parts(name: str) -> Iterator[Bits]:
        alive.append(name)
        yield np.full((2, 2), 1, np.float32)
        yield np.full((1, 2), 2, np.float32).T.reshape(1, 2)
        assert alive == [name]
        alive.remove(name)

    outs = [TensorOut(name, "F32", (3, 2), lambda name=name: parts(name)) for name in ("a", "b")]  # type: ignore[misc]
    write_safetensors(tmp_path / "x.safetensors", outs)
    assert SafetensorsFile(tmp_path / "x.safetensors").array("b").tolist() == [[1, 1], [1, 1], [2, 2]]


def test_views_are_written_in_their_own_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save(tmp_path / "x.safetensors", {"x": ("F32", array)})
    assert SafetensorsFile(tmp_path / "x.safetensors").array("x").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_producer_that_breaks_its_word_is_a_bug_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"x": ("F32", np.ones(2, np.float32))})
    before = path.read_bytes()
    with pytest.raises(AssertionError, match="x: 4 bytes were given, 8 announced"):
        write_safetensors(path, [TensorOut("x", "F32", (2,), lambda: np.ones(1, np.float32))])
    with pytest.raises(AssertionError, match="x: float64 was given, float32 announced"):
        write_safetensors(path, [TensorOut("x", "F32", (1,), lambda: np.ones(1))])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"x": ("F32", np.ones(2, np.float32))})
    before = path.read_bytes()
    program = f"""
import os, signal
from pathlib import Path
import numpy as np
from sapp_cli.checkpoint.write import TensorOut, write_safetensors
def parts():
    yield np.zeros(1_000_000, np.float32)
    os.kill(os.getpid(), signal.SIGKILL)
write_safetensors(Path({str(path)!r}), [TensorOut("x", "F32", (2_000_000,), parts)])
"""
    finished = subprocess.run([sys.executable, "-c", program], check=False)
    assert finished.returncode == -9
    assert path.read_bytes() == before
    assert SafetensorsFile(path).array("x").tolist() == [1, 1]


def test_shards_and_their_index(tmp_path: Path) -> None:
    one = TensorOut("a", "F32", (2,), lambda: np.ones(2, np.float32))
    two = TensorOut("b", "F32", (1,), lambda: np.ones(1, np.float32))
    files = write_sharded(tmp_path, "model", [ShardOut("model.safetensors", [one, two], {})], {})
    assert [file.name for file in files] == ["model.safetensors"]
    shards = [ShardOut("x-1.safetensors", [one], {"format": "pt"}), ShardOut("x-2.safetensors", [two], {})]
    files = write_sharded(tmp_path, "model", shards, {"total_parameters": 3, "total_size": 0})
    assert [file.name for file in files] == ["x-1.safetensors", "x-2.safetensors", "model.safetensors.index.json"]
    assert json.loads(files[-1].read_text()) == {
        "metadata": {"total_parameters": 3, "total_size": 12},
        "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"},
    }
    with safe_open(files[0], "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("limit", "shards"),
    [
        (None, [["a", "b", "c"]]),
        (9, [["a", "b"], ["c"]]),
        (8, [["a"], ["b"], ["c"]]),
        (1, [["a"], ["b"], ["c"]]),
        (100, [["a", "b", "c"]]),
    ],
)
def test_shard_by_size(limit: int | None, shards: list[list[str]]) -> None:
    found = shard_by_size({"a": 4, "b": 5, "c": 8}, limit)
    assert [names for _, names in found] == shards
    expected = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    assert [file for file, _ in found] == (expected if len(shards) > 1 else ["model.safetensors"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 mb", 500 * 10**6), ("4GiB", 2**32), ("1.5K", 1500), ("123", 123), (" 2TiB ", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "0", "0.1B", "1e9", "٣GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == f"'{text}' is no size; write it as 500MB, 5GB or 4GiB"


def test_a_disk_that_does_not_take_it_is_a_resource_error_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        write_safetensors(tmp_path / "missing" / "x.safetensors", [])
    assert str(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"
    advice = {
        errno.ENOSPC: "the disk is full; free some space, or give another folder",
        errno.EROFS: "the disk is mounted read-only; give another folder",
        errno.EACCES: "no permission to write there; give another folder",
    }
    for number, text in advice.items():
        with pytest.raises(ResourceError) as caught, disk_errors(tmp_path):
            raise OSError(number, os.strerror(number))
        assert str(caught.value) == f"{tmp_path}: {text}"


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / f".x.safetensors.sapp-new-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(ResourceError) as caught:
        save(tmp_path / "x.safetensors", {"x": ("F32", np.ones(5_000_000, np.float32))})
    assert str(caught.value) == f"{tmp_path}: the disk is full; free some space, or give another folder"
    assert list(tmp_path.iterdir()) == []
