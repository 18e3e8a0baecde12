"""Pickled state dicts: read without running anything, through the same interface as all other checkpoints."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError

REFUSED = (
    "refused: it holds more than tensors, and reading that would run code. If you trust it, load it where it was made "
    "and save model.state_dict() there, with torch.save or safetensors.torch.save_file"
)

SAVE = "; save model.state_dict() alone: torch.save(model.state_dict(), 'weights.pt')"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_state_dict(tmp_path: Path) -> None:
    state = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "brain": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "small": torch.tensor([0.5]).to(torch.float8_e5m2),
        "count": torch.tensor(3),
        "part": torch.arange(10)[4:6],
    }
    path = tmp_path / "model.pt"
    torch.save(state, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.shards == [("model.pt", list(state))]
    assert checkpoint.array("weight").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.array("turned").tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [rows.tolist() for _, rows in checkpoint.slabs("turned", 16)] == [[[0, 3], [1, 4]], [[2, 5]]]
    assert checkpoint.array("brain").tolist() == [0x3F80, 0xC000]
    assert checkpoint.float32("small").tolist() == [0.5]
    assert (checkpoint.array("count").tolist(), checkpoint.shape("count")) == (3, ())
    assert checkpoint.array("part").tolist() == [4, 5]
    assert checkpoint.dtype("part") == "I64"


def test_ties_are_recorded_and_stored_once(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    torch.save(OrderedDict(embed=weight, head=weight, row=weight[0]), tmp_path / "model.pth")
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert checkpoint.dense_names() == ["embed", "row"]
    assert checkpoint.tied == {"head": "embed"}
    assert checkpoint.dense_array("head").tolist() == [[1, 1], [1, 1]]
    assert checkpoint.bytes == 24


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_the_state_dict_is_found_in_what_a_training_script_saved(tmp_path: Path, wrapper: str) -> None:
    saved = {"epoch": 3, wrapper: {"weight": torch.ones(1), "version": "7"}, "optimizer": {"state": {}, "lr": 0.1}}
    torch.save(saved, tmp_path / "checkpoint.pt")
    checkpoint = open_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint.dense_names() == ["weight"]
    assert checkpoint.ignored == {"version": "not a tensor but str"}


def test_folders_of_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"optimizer": 1}, tmp_path / "optimizer.pt")
    assert open_checkpoint(tmp_path).dense_names() == ["a"]
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    tied = torch.ones(2)
    torch.save({"b": tied, "c": tied}, tmp_path / "pytorch_model-00002-of-00002.bin")
    assert open_checkpoint(tmp_path).dense_names() == ["a", "b"]
    files = {"a": "pytorch_model-00001-of-00002.bin"} | dict.fromkeys("bc", "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dense_names() == ["a", "b"]
    assert checkpoint.tied == {"c": "b"}


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "old.bin").array("a").tolist() == [1, 1]


class Runs:
    """Pickled, it is a call of Path.touch on unpickling."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "model.pt"
    torch.save({"weight": torch.ones(1), "x": Runs(victim)}, path, _use_new_zipfile_serialization=zipped)
    assert refusal(path) == REFUSED
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    assert refusal(path) == REFUSED
    assert not victim.exists()
    path.write_bytes(pickle.dumps(Runs(victim)))
    assert (
        refusal(path) == "is damaged, or no PyTorch file; download or copy the file again"
    )  # no code is allowed either
    assert not victim.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": 1, "b": {"c": [2]}}, "holds no state dict, but the keys 'a', 'b'" + SAVE),
        (torch.ones(1), "holds no state dict, but a Tensor" + SAVE),
        ([{"a": torch.ones(1)}], "holds no state dict, but a list" + SAVE),
        ({}, "holds no state dict, but no keys" + SAVE),
        (
            {"a": torch.ones(2, 2).to_sparse()},
            "'a': is a sparse or nested tensor (torch.sparse_coo); save a dense one: tensor.to_dense()",
        ),
        (
            {"a": torch.empty(2**40, device="meta")},
            "'a': is without data; save a dense one: load the model onto a device first",
        ),
        (
            {"a": torch.ones(1, dtype=torch.complex128)},
            "'a': dtype torch.complex128 is not supported; save it as another one, or leave it out",
        ),
        (
            {"a": torch.ones(1).expand(2**40)},
            "'a': repeats one stored number over many entries; save a contiguous copy",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt") == message


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_block_sparse_tensors_of_torch(tmp_path: Path) -> None:
    torch.save({"net": {"a": torch.eye(4).to_sparse_bsr((2, 2))}}, tmp_path / "model.pt")
    message = "'a': is a sparse or nested tensor (torch.sparse_bsr); save a dense one: tensor.to_dense()"
    assert refusal(tmp_path / "model.pt") == message


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors(tmp_path: Path) -> None:
    tensor = torch._make_per_tensor_quantized_tensor(torch.ones(2, dtype=torch.int8), 0.1, 0)
    torch.save({"a": tensor}, tmp_path / "model.pt")
    message = "'a': quantized weights are not supported; start from the unquantized checkpoint"
    assert refusal(tmp_path / "model.pt") == message


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.from_numpy(np.arange(1000))}, path)
    whole = path.read_bytes()
    for content in (b"", b"not a pickle", b"PK\3\4", whole[:100], whole[: len(whole) // 2], whole[:-30], bytes(1000)):
        path.write_bytes(content)
        assert refusal(path).startswith("is damaged, or no PyTorch file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/version", "3")
        archive.writestr("model/data.pkl", pickle.dumps({"a": 1})[:-1])
    assert refusal(path).startswith("is damaged, or no PyTorch file")
