"""From layout to layout and back: the same bits, names, shards, ties and metadata."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.checkpoint.dtypes import Bits
from sapp_cli.checkpoint.export import Blocks, dense_tensors, export_checkpoint
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import ResourceError
from sapp_cli.grid import BlockGrid, LayoutKind, MatrixLayout
from tests.checkpoint.files import FLOATS, random_bits, same_bits, save

KINDS: dict[str, LayoutKind] = {"linear": "linear", "attention.c_attn": "transposed", "conv": "conv"}


def blocks_of(checkpoint: Checkpoint, block: tuple[int, int] = (3, 2)):  # type: ignore[no-untyped-def]
    """The blocks of each `*.weight`, its layout by its name."""

    def found(name: str) -> Blocks | None:
        if not name.endswith(".weight"):
            return None
        layout = MatrixLayout(KINDS[name.removesuffix(".weight")], checkpoint.shape(name))
        return layout, BlockGrid(layout.matrix, block)

    return found


def model(rng: np.random.Generator, dtype: str) -> dict[str, tuple[str, Bits]]:
    shapes = {
        "linear.weight": (7, 9),
        "attention.c_attn.weight": (8, 5),
        "conv.weight": (4, 3, 2, 2),
        "linear.bias": (7,),
    }
    tensors = {name: (dtype, random_bits(rng, dtype, shape, zeros=0.9)) for name, shape in shapes.items()}
    return {**tensors, "steps": ("I64", np.array(7))}


def contents(checkpoint: Checkpoint) -> dict[str, tuple[str, Bits]]:
    return {name: (dtype, np.ascontiguousarray(array)) for name, dtype, array in dense_tensors(checkpoint)}


def plain_zeros(array: Bits, dtype: str) -> Bits:
    """−0 as +0."""
    negative = {"F64": 1 << 63, "F32": 1 << 31, "F16": 1 << 15, "BF16": 1 << 15, "F8_E4M3": 128, "F8_E5M2": 128}.get(
        dtype
    )
    if negative is None:
        return array
    bits = array.view(f"u{array.dtype.itemsize}")
    return np.where(bits == negative, bits.dtype.type(0), bits).view(array.dtype)


def check_same(one: Checkpoint, other: Checkpoint) -> None:
    """Same names, dtypes, bits and ties; as to −0, what becomes of it is tested by itself."""
    found, expected = contents(one), contents(other)
    assert list(found) == list(expected)
    for name, (dtype, array) in expected.items():
        assert found[name][0] == dtype
        assert same_bits(plain_zeros(found[name][1], dtype), plain_zeros(array, dtype)), name
    assert one.tied == other.tied


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(FLOATS), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_dense_to_sparse_to_dense(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, seed: int, br: int, bc: int
) -> None:
    folder = tmp_path_factory.mktemp("export")
    tensors = model(np.random.default_rng(seed), dtype)
    source = open_checkpoint(save(folder / "x.safetensors", tensors, {"format": "pt", "more": "kept"}))
    for place in ("both", "sparse", "dense"):
        (folder / place).mkdir()
    export_checkpoint(source, folder / "both", "both", blocks_of(source, (br, bc)))
    dense, sparse = open_checkpoint(folder / "both"), open_checkpoint(folder / "both" / "sparse")
    check_same(dense, source)
    assert {name: same_bits(array, contents(sparse)[name][1]) for name, (_, array) in contents(dense).items()} == (
        dict.fromkeys(tensors, True)
    )
    assert set(sparse.block_sparse) == {"linear.weight", "attention.c_attn.weight", "conv.weight"}
    assert sparse.metadata("steps")["more"] == dense.metadata("steps")["more"] == "kept"
    export_checkpoint(sparse, folder / "dense", "dense", lambda name: None)
    again = (folder / "dense" / "model.safetensors").read_bytes()
    assert again == (folder / "both" / "model.safetensors").read_bytes()
    export_checkpoint(sparse, folder / "sparse", "bsr", lambda name: None)
    assert [path.name for path in (folder / "sparse").iterdir()] == ["sparse"]
    again = (folder / "sparse" / "sparse" / "model.safetensors").read_bytes()
    assert again == (folder / "both" / "sparse" / "model.safetensors").read_bytes()


def test_negative_zeros(tmp_path: Path) -> None:
    weight = np.array([[-0.0, 1, -0.0, -0.0]], np.float32)
    source = open_checkpoint(save(tmp_path / "x.safetensors", {"linear.weight": ("F32", weight)}))
    signs = {}
    for layout in ("dense", "both"):
        (tmp_path / layout).mkdir()
        export_checkpoint(source, tmp_path / layout, layout, blocks_of(source, (1, 2)))  # type: ignore[arg-type]
        signs[layout] = np.signbit(open_checkpoint(tmp_path / layout).array("linear.weight")).tolist()
    assert signs == {"dense": [[True, False, True, True]], "both": [[True, False, False, False]]}
    sparse = open_checkpoint(tmp_path / "both" / "sparse").dense_array("linear.weight")
    assert np.signbit(sparse).tolist() == [[True, False, False, False]]


def test_shards_are_the_sources_unless_a_size_is_given(tmp_path: Path) -> None:
    source_folder, out = tmp_path / "source", tmp_path / "out"
    source_folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = model(rng, "F32")
    names = list(tensors)
    for number, part in enumerate((names[:2], names[2:]), 1):
        save(source_folder / f"model-{number:05}-of-00002.safetensors", {name: tensors[name] for name in part})
    source = open_checkpoint(source_folder)
    out.mkdir()
    files = export_checkpoint(source, out, "both", blocks_of(source))
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert [str(file.relative_to(out)) for file in files] == [*shards, *(f"sparse/{name}" for name in shards)]
    for place in (out, out / "sparse"):
        check_same(open_checkpoint(place), source)
        assert [names for _, names in open_checkpoint(out).shards] == [names for _, names in source.shards]
    weight_map = json.loads((out / "sparse" / shards[2]).read_text())["weight_map"]
    assert weight_map["linear.weight.bsr_values"] == shards[0]

    small = tmp_path / "small"
    small.mkdir()
    export_checkpoint(source, small, "both", blocks_of(source), max_shard_bytes=300)
    assert [names for _, names in open_checkpoint(small).shards] == [names[:1], names[1:2], names[2:]]
    assert [file for file, _ in open_checkpoint(small / "sparse").shards] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    check_same(open_checkpoint(small / "sparse"), source)
    one = tmp_path / "one"
    one.mkdir()
    export_checkpoint(open_checkpoint(small / "sparse"), one, "dense", lambda name: None, max_shard_bytes=10**9)
    assert [path.name for path in one.iterdir()] == ["model.safetensors"]
    check_same(open_checkpoint(one), source)


def test_ties_and_pickled_shards(tmp_path: Path) -> None:
    source_folder, out = tmp_path / "source", tmp_path / "out"
    source_folder.mkdir()
    weight = torch.eye(6)
    torch.save({"linear.weight": weight, "head": weight}, source_folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"bias": torch.ones(2)}, source_folder / "pytorch_model-00002-of-00002.bin")
    source = open_checkpoint(source_folder)
    out.mkdir()
    export_checkpoint(source, out, "both", blocks_of(source))
    dense, sparse = open_checkpoint(out), open_checkpoint(out / "sparse")
    assert (dense.dense_names(), dense.tied) == (["linear.weight", "head", "bias"], {})
    check_same(sparse, source)
    for exported in (dense, sparse):
        assert exported.dense_array("head").tolist() == np.eye(6).tolist()
        assert [name for name, _ in exported.shards] == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
    assert sparse.block_sparse["linear.weight"].kept == 4
    again = tmp_path / "again"
    again.mkdir()
    export_checkpoint(sparse, again, "dense", lambda name: None)
    assert open_checkpoint(again).dense_names() == dense.dense_names()


def test_memory_is_bounded_by_the_largest_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"{number}.weight": ("F32", rng.random((1024, 1024), np.float32)) for number in range(8)}
    source = open_checkpoint(save(tmp_path / "x.safetensors", tensors))
    del tensors
    layout = MatrixLayout("linear", (1024, 1024))
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    export_checkpoint(source, tmp_path / "out", "both", lambda name: (layout, BlockGrid(layout.matrix, (16, 16))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * (4 << 20) + (1 << 20) < source.bytes


def test_a_disk_without_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(save(tmp_path / "x.safetensors", {"bias": ("F32", np.ones(2, np.float32))}))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 7})())
    with pytest.raises(ResourceError, match=r": needs 0\.00 GB of disk, 0\.00 GB are free"):
        export_checkpoint(source, tmp_path / "out", "dense", lambda name: None)
    assert not (tmp_path / "out").exists()
