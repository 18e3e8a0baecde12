"""Checkpoints of every kind, opened; and the one line with which all others are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid, MatrixLayout
from tests.checkpoint.files import entry, frame, save, save_block_sparse, save_floats

AGAIN = "; download or copy the file again"
MERGE = "; merge it into its base model and give the merged checkpoint"
UNQUANTIZED = "; start from the unquantized one"
GIVE_ONE = "; give one of these files"
NONE = "no weights in this folder: no .safetensors, .bin, .pt, .pth or .ckpt file"


def quantized(method: dict[str, Any]) -> str:
    return json.dumps({"quantization_config": method})


def refusal(path: Path | str, place: Path | str | None = None) -> str:
    """What opening `path` is refused with, behind the `place` it names first."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    place = path if place is None else place
    assert str(caught.value).startswith(f"{place}: "), str(caught.value)
    return str(caught.value).removeprefix(f"{place}: ")


def write_index(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json", **more: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({"weight_map": weight_map, **more}))
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards with their index and a configuration."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_floats(folder / "model-00001-of-00002.safetensors", a=[1.0], b=[[2.0, 3.0]])
    save_floats(folder / "model-00002-of-00002.safetensors", c=[4.0])
    files = {"a": 1, "b": 1, "c": 2}
    weight_map = {name: f"model-{number:05}-of-00002.safetensors" for name, number in files.items()}
    write_index(folder, weight_map, metadata={"total_size": 16})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def check_sharded(checkpoint: Checkpoint) -> None:
    assert checkpoint.shards == [
        ("model-00001-of-00002.safetensors", ["a", "b"]),
        ("model-00002-of-00002.safetensors", ["c"]),
    ]
    assert checkpoint.dense_names() == list(checkpoint.tensors) == ["a", "b", "c"]
    assert {name: checkpoint.array(name).tolist() for name in "abc"} == {"a": [1], "b": [[2, 3]], "c": [4]}
    assert (checkpoint.shape("b"), checkpoint.dtype("b"), checkpoint.bytes) == ((1, 2), "F32", 16)
    assert checkpoint.raw("c").tobytes() == np.float32(4).tobytes()
    assert [rows.tolist() for _, rows in checkpoint.slabs("b", 100)] == [[[2, 3]]]


def test_a_hugging_face_folder(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    check_sharded(checkpoint)
    assert checkpoint.folder == checkpoint.path == sharded
    assert checkpoint.config == {"model_type": "bert"}
    assert checkpoint.index_metadata == {"total_size": 16}


def test_an_index(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded / "model.safetensors.index.json")
    check_sharded(checkpoint)
    assert checkpoint.folder == sharded


def test_a_folder_of_shards_without_index_and_configuration(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "config.json").unlink()
    checkpoint = open_checkpoint(str(sharded))
    check_sharded(checkpoint)
    assert (checkpoint.config, checkpoint.folder) == (None, sharded)


def test_one_file(sharded: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded / "model-00002-of-00002.safetensors")
    assert (checkpoint.dense_names(), checkpoint.folder, checkpoint.config) == (["c"], sharded, {"model_type": "bert"})
    alone = open_checkpoint(save_floats(tmp_path / "alone.safetensors", x=[1.0]))
    assert (alone.dense_names(), alone.folder, alone.config) == (["x"], None, None)


def test_model_safetensors_goes_before_everything_else_as_in_transformers(sharded: Path) -> None:
    save_floats(sharded / "model.safetensors", whole=[1.0])
    torch.save({"other": torch.ones(1)}, sharded / "pytorch_model.bin")
    assert open_checkpoint(sharded).dense_names() == ["whole"]


def test_the_cache_of_the_hub_is_made_of_links(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / "abc", tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sharded.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    check_sharded(open_checkpoint(snapshot))


def test_block_sparse_weights_are_logical_ones(tmp_path: Path) -> None:
    layout, grid = MatrixLayout("transposed", (3, 4)), BlockGrid((4, 3), (2, 2))
    array = np.zeros((3, 4), np.uint16)
    array[0, 3] = 0x3F80  # 1.0 in bfloat16
    (tmp_path / "sparse").mkdir()
    path = save_block_sparse(tmp_path / "sparse" / "model.safetensors", "w", "BF16", array, layout, grid, alias="w")
    save_floats(tmp_path / "sparse" / "bias.safetensors", bias=[1.0])
    (tmp_path / "config.json").write_text("{}")
    for place in (path, tmp_path):
        checkpoint = open_checkpoint(place)
        assert checkpoint.dense_names() == ["w"]
        assert checkpoint.folder == tmp_path
        assert checkpoint.tied == {"alias": "w"}
        entry = checkpoint.block_sparse["w"]
        assert (entry.layout, entry.grid, entry.kept, entry.dtype, entry.nbytes) == (layout, grid, 1, "BF16", 24)
        assert list(checkpoint.tensors) == ["w.bsr_values", "w.bsr_crow_indices", "w.bsr_col_indices"]
        assert checkpoint.bytes == 24
        for name in ("w", "alias"):
            assert (checkpoint.shape(name), checkpoint.dtype(name)) == ((3, 4), "BF16")
            assert checkpoint.dense_array(name).tolist() == array.tolist()
            assert checkpoint.dense_float32(name).tolist() == [[0, 0, 0, 1], [0] * 4, [0] * 4]
            assert checkpoint.matrix(name).values.tolist() == [[[0, 0], [0x3F80, 0]]]
        assert checkpoint.metadata("w")["sapp_bsr_version"] == "1"
    with pytest.raises(CheckpointError, match="'x': no such tensor in this checkpoint"):
        checkpoint.dense_array("x")


def test_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "above" / "here"  # nothing of other tests lies beside it
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("gpt2", "meta-llama/Llama-3.1-8B"):
        advice = f"a model of the hub? Run `hf download {name}` first, and give the folder it prints"
        assert refusal(name) == f"no such file or folder; {advice}"
    for name in ("/gpt2", "../gpt2", "model.bin"):
        assert refusal(name) == "no such file or folder"
    for name, folder in (("a/b/c", "a/b"), ("x/model.safetensors", "x")):
        assert refusal(name) == f"no such file or folder: there is no folder {folder}"
    for name in ("https://huggingface.co/meta-llama/Llama-3.1-8B", "http://huggingface.co/gpt/2/tree/main"):
        model = "/".join(name.split("/")[3:5])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(name)
        assert str(caught.value) == (
            f"{name}: is an address, and sapp reads files; for a model of the hub run `hf download {model}` first, and give "
            "the folder it prints"
        )
    (here / "model.safetensors").touch()
    assert refusal("modle.safetensors") == "no such file or folder; nearest: 'model.safetensors'"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, NONE),
        ({"training_args.bin": "", "optimizer.pt": ""}, NONE),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""},
         "an adapter (adapter_config.json)" + MERGE),
        ({"config.json": quantized({"quant_method": "gptq"}), "model.safetensors": ""},
         "a quantized checkpoint ('gptq' in config.json)" + UNQUANTIZED),
        ({"config.json": quantized({"bits": 4}), "model.safetensors": ""},
         "a quantized checkpoint (quantization_config in config.json)" + UNQUANTIZED),
        ({"model-00001-of-00003.safetensors": "", "model-00003-of-00003.safetensors": ""},
         "shard 'model-00002-of-00003.safetensors' is missing" + AGAIN),
        ({"a.safetensors.index.json": "", "b.safetensors.index.json": ""},
         "several checkpoints in one folder (a.safetensors.index.json, b.safetensors.index.json)" + GIVE_ONE),
        ({"a.pt": "", "b.pth": ""}, "several state dicts in one folder (a.pt, b.pth)" + GIVE_ONE),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert refusal(tmp_path) == message


def test_files_that_are_refused(tmp_path: Path) -> None:
    for name, message in {
        "adapter_model.safetensors": "an adapter" + MERGE,
        "model.txt": "unknown kind of file; give a folder, .safetensors, .safetensors.index.json, .bin, .pt, .pth or .ckpt",
    }.items():
        (tmp_path / name).write_bytes(b"")
        assert refusal(tmp_path / name) == message


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.qweight", "I32"),
        ("a.weight_packed", "I32"),
        ("a.SCB", "F32"),
        ("a.weight_scale", "F32"),
        ("a.weight_scale_inv", "F32"),
    ],
)
def test_quantized_weights_are_known_by_their_names(tmp_path: Path, name: str, dtype: str) -> None:
    size = 4
    tensors = {"a.weight": entry("F8_E4M3", [1], size, size + 1), name: entry(dtype, [1], 0, size)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(frame(tensors, bytes(size + 1)))
    text = f"'{name}': quantized weights ({dtype}) are not supported; start from the unquantized checkpoint"
    assert refusal(path) == text


def test_plain_8_bit_weights_are_not_quantized_ones(tmp_path: Path) -> None:
    weights = {"a.weight": ("F8_E4M3", np.array([0x38], np.uint8)), "logit_scale": ("F32", np.ones(1, np.float32))}
    assert open_checkpoint(save(tmp_path / "x.safetensors", weights)).float32("a.weight").tolist() == [1]


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/passwd.safetensors", "sub/x.safetensors", "sub\\x.safetensors", "..", ".", "", " ",
     "a\0.safetensors", "C:x.safetensors", "x\n.safetensors", 7, None, ["x.safetensors"]],
)  # fmt: skip
def test_an_index_cannot_point_outside_its_folder(sharded: Path, shard: Any) -> None:
    save_floats(sharded.parent / "outside.safetensors", a=[1.0])
    index = write_index(sharded, {"a": shard})
    message = refusal(sharded, index)
    assert message.startswith("'a': ")
    assert message.endswith(" is not the name of a file in its folder; paths are refused")


def test_an_index_of_tensors_cannot_name_a_pickle(sharded: Path) -> None:
    index = write_index(sharded, {"a": "x.bin"})
    assert refusal(sharded, index) == "'a': 'x.bin' is not a .safetensors file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the index is not JSON: Expecting value (character 0)" + AGAIN),
        ("{}", "is not an index: weight_map does not map tensors to files"),
        ('{"weight_map": {}}', "is not an index: weight_map does not map tensors to files"),
        ('{"weight_map": ["a"]}', "is not an index: weight_map does not map tensors to files"),
        ('{"weight_map": {"a": "m", "a": "n"}}', "the index has 'a' twice"),
        ("[" * 10**6, "the index is nested too deeply to be read"),
        (
            '{"weight_map": {"a": "gone.safetensors"}}',
            "shard 'gone.safetensors' is missing" + AGAIN,
        ),
    ],
)
def test_a_damaged_index(sharded: Path, content: str, message: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(sharded, index) == message


def test_a_shard_that_is_missing_or_listed_twice(sharded: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = write_index(sharded, {"a": first, "b": first, "c": "link.safetensors"})
    (sharded / "link.safetensors").symlink_to(first)
    assert refusal(sharded, index) == f"shards 'link.safetensors' and '{first}' are one and the same file"
    (sharded / "link.safetensors").unlink()
    assert refusal(sharded, index) == "shard 'link.safetensors' is missing" + AGAIN
    (sharded / second).unlink()
    index.unlink()
    assert refusal(sharded) == f"shard '{second}' is missing" + AGAIN


def test_an_index_and_shards_that_disagree(sharded: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    again = "" + AGAIN
    index = write_index(sharded, {"a": first, "b": first, "c": second, "d": second})
    assert refusal(sharded, index) == f"'d': is not in '{second}', where the index places it{again}"
    write_index(sharded, {"a": first, "c": second})
    assert refusal(sharded, sharded / first) == f"'b': is here, but {index.name} does not name it{again}"
    write_index(sharded, {"a": first, "b": second, "c": second})
    assert refusal(sharded, sharded / first) == f"'b': is here, but {index.name} places it in '{second}'{again}"


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_floats(tmp_path / "one.safetensors", x=[1.0])
    save_floats(tmp_path / "two.safetensors", x=[1.0])
    message = "'x': is in 'one.safetensors' as well; each tensor has one shard"
    assert refusal(tmp_path, tmp_path / "two.safetensors") == message


def test_a_configuration_that_cannot_be_read(sharded: Path) -> None:
    config = sharded / "config.json"
    config.write_text("{" * 10**5)
    assert refusal(sharded, config).startswith("the configuration is not JSON")
    config.write_text('{"a":' * 500 + "0" + "}" * 500)
    assert refusal(sharded, config) == "the configuration is nested more than 64 deep"
    config.write_text(" " * 16_000_001)
    assert refusal(sharded, config) == "the configuration has more than 16,000,000 bytes"
    config.write_text("[1]")
    assert refusal(sharded, config) == "the configuration is not a JSON object"
    config.write_text('{"a": 1, "a": NaN}')  # as transformers reads it
    assert set(open_checkpoint(sharded).config or {}) == {"a"}


def test_a_pipe_in_the_place_of_a_shard_does_not_block(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    assert refusal(sharded, sharded / "model.safetensors.index.json").startswith(f"shard '{shard.name}' is missing")
    (sharded / "model.safetensors.index.json").unlink()
    assert refusal(sharded, shard) == "is not a regular file"


def test_nothing_but_a_pickle_needs_torch(sharded: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from sapp_cli.checkpoint.export import export_checkpoint
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.grid import BlockGrid, MatrixLayout
checkpoint = open_checkpoint(Path({str(sharded)!r}))
layout = MatrixLayout("linear", (1, 2))
blocks = layout, BlockGrid((1, 2), (1, 1))
print(block_statistics(checkpoint, "b", *blocks).norms.tolist())
Path({str(sharded / "out")!r}).mkdir()
export_checkpoint(checkpoint, Path({str(sharded / "out")!r}), "both", lambda name: blocks if name == "b" else None)
print({{"torch", "safetensors", "pydantic"}} & set(sys.modules))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[[2.0, 3.0]]\nset()\n"
